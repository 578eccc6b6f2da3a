"""Distillation losses on outputs: what a student's logits should learn from a teacher's.

Every loss is a scalar, 0 where the student agrees with the teacher, averaged over what is in front of the last dimension
(examples, frames, tokens). No gradient reaches the teacher. Losses at a temperature T are multiplied by T^2, which keeps the
size of their gradients (Hinton et al. 2015, arXiv:1503.02531, section 2).

Dimension key: N examples, frames or tokens, C classes or vocabulary, B examples of a batch.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

_TINY = 1e-8


def soft_labels(student_NC: Tensor, teacher_NC: Tensor, *, temperature: float = 4.0) -> Tensor:
    """T^2 KL(softmax(z_t / T) || softmax(z_s / T)), in nats: the forward divergence, which covers all that the teacher does
    (arXiv:1503.02531).
    """
    return temperature**2 * _divergence(_log_p(teacher_NC.detach(), temperature), _log_p(student_NC, temperature))


def reverse(student_NC: Tensor, teacher_NC: Tensor, *, temperature: float = 1.0) -> Tensor:
    """T^2 KL(softmax(z_s / T) || softmax(z_t / T)): a small student keeps to what it can do well instead of covering all
    (MiniLLM, Gu et al. 2024, arXiv:2306.08543, eq. 2).
    """
    return temperature**2 * _divergence(_log_p(student_NC, temperature), _log_p(teacher_NC.detach(), temperature))


def skewed(student_NC: Tensor, teacher_NC: Tensor, *, skew: float = 0.1, temperature: float = 1.0) -> Tensor:
    """T^2 KL(p_t || skew p_t + (1 - skew) p_s): finite however small p_s (DistiLLM, Ko et al. 2024, arXiv:2402.03898, eq. 3).

    skew: in [0, 1); at 0 it is `soft_labels`.
    """
    log_teacher_NC = _log_p(teacher_NC.detach(), temperature)
    return temperature**2 * _divergence(log_teacher_NC, _mixed(log_teacher_NC, _log_p(student_NC, temperature), skew))


def jensen_shannon(student_NC: Tensor, teacher_NC: Tensor, *, beta: float = 0.5, temperature: float = 1.0) -> Tensor:
    """beta KL(p_t || m) + (1 - beta) KL(p_s || m) with m = beta p_t + (1 - beta) p_s (GKD, Agarwal et al. 2024,
    arXiv:2306.13649, eq. 1), times T^2. beta: in (0, 1). Between the forward and the reverse divergence, and bounded.
    """
    log_teacher_NC, log_student_NC = _log_p(teacher_NC.detach(), temperature), _log_p(student_NC, temperature)
    log_m_NC = _mixed(log_teacher_NC, log_student_NC, beta)
    both = beta * _divergence(log_teacher_NC, log_m_NC) + (1 - beta) * _divergence(log_student_NC, log_m_NC)
    return temperature**2 * both


def logits(student_NC: Tensor, teacher_NC: Tensor) -> Tensor:
    """Mean squared difference of the logits (Ba and Caruana 2014, arXiv:1312.6184, eq. 1); also for regression."""
    return functional.mse_loss(student_NC, teacher_NC.detach())


def embeddings(student_NC: Tensor, teacher_NC: Tensor) -> Tensor:
    """1 - cosine, for outputs whose length means nothing, as those of sentence encoders."""
    return (1 - functional.cosine_similarity(student_NC, teacher_NC.detach(), dim=-1)).mean()


def decoupled(
    student_NC: Tensor,
    teacher_NC: Tensor,
    target_N: Tensor,
    *,
    target: float = 1.0,
    others: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """T^2 (target KL(b_t || b_s) + others KL(q_t || q_s)): b is the probability of the right class against all others, q how
    the others share the rest (DKD, Zhao et al. 2022, arXiv:2203.08679, eq. 7).

    In `soft_labels` the second term is weighted with 1 - p_t(right class), so a sure teacher teaches little.
    target_N: the right classes, int64. target, others: the paper's alpha and beta.
    """
    is_target_NC = functional.one_hot(target_N.long(), student_NC.shape[-1]).bool()
    log_teacher_NC, log_student_NC = _log_p(teacher_NC.detach(), temperature), _log_p(student_NC, temperature)
    first = _divergence(_binary(log_teacher_NC, is_target_NC), _binary(log_student_NC, is_target_NC))
    rest = [(log_p_NC.masked_fill(is_target_NC, -torch.inf)).log_softmax(-1) for log_p_NC in (log_teacher_NC, log_student_NC)]
    # 0 in the place of the right class on both sides adds exp(0) (0 - 0) = 0
    second = _divergence(*(log_q_NC.masked_fill(is_target_NC, 0.0) for log_q_NC in rest))
    return temperature**2 * (target * first + others * second)


def correlation(
    student_NC: Tensor, teacher_NC: Tensor, *, between: float = 1.0, within: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """T^2 (between (1 - rho over classes) + within (1 - rho over examples)), rho Pearson's correlation of the probabilities
    (DIST, Huang et al. 2022, arXiv:2205.10536, eq. 8 to 10).

    A student much weaker than its teacher matches the order of its preferences where it cannot match them exactly.
    """
    teacher_NC, student_NC = (_log_p(z_NC, temperature).exp().flatten(0, -2) for z_NC in (teacher_NC.detach(), student_NC))
    rows, columns = 1 - _pearson(student_NC, teacher_NC), 1 - _pearson(student_NC.T, teacher_NC.T)
    return temperature**2 * (between * rows.mean() + within * columns.mean())


LOSSES: dict[str, Callable[..., Tensor]] = {
    "kd": soft_labels,
    "reverse_kl": reverse,
    "skew_kl": skewed,
    "jensen_shannon": jensen_shannon,
    "mse": logits,
    "cosine": embeddings,
    "dkd": decoupled,
    "dist": correlation,
}


def _log_p(logits_NC: Tensor, temperature: float) -> Tensor:
    return (logits_NC / temperature).log_softmax(-1)


def _divergence(log_p_NC: Tensor, log_q_NC: Tensor) -> Tensor:
    """KL(p || q), mean over all but the last dimension."""
    return (log_p_NC.exp() * (log_p_NC - log_q_NC)).sum(-1).mean()


def _mixed(log_p_NC: Tensor, log_q_NC: Tensor, share: float) -> Tensor:
    """log(share p + (1 - share) q)."""
    if share == 0:
        return log_q_NC
    log_share = torch.tensor([share, 1 - share], dtype=log_p_NC.dtype, device=log_p_NC.device).log()
    return torch.logaddexp(log_p_NC + log_share[0], log_q_NC + log_share[1])


def _binary(log_p_NC: Tensor, is_target_NC: Tensor) -> Tensor:
    """log(p, 1 - p) of the right class."""
    log_right_N1 = log_p_NC[is_target_NC][:, None]
    log_wrong_N1 = log_p_NC.masked_fill(is_target_NC, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([log_right_N1, log_wrong_N1], dim=-1)


def _pearson(a_NC: Tensor, b_NC: Tensor) -> Tensor:
    """Correlation of each pair of rows, shape N."""
    a_NC, b_NC = (value_NC - value_NC.mean(1, keepdim=True) for value_NC in (a_NC, b_NC))
    return functional.cosine_similarity(a_NC, b_NC, dim=1, eps=_TINY)
