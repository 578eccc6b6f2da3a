"""Distillation losses on what lies inside: features, attention maps, and how examples or tokens relate to one another.

Every loss is a scalar, 0 where student and teacher agree in what it compares. No gradient reaches the teacher. Widths may
differ where only relations are compared.

Dimension key: B examples, F features (C * spatial where they are maps), C channels, P a projection's width, H heads, T tokens,
D width of a head.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_TINY = 1e-8
_NEVER = -1e9


def hidden_states(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of equally shaped features, as FitNets' hints behind a learned projection (Romero et al. 2015,
    arXiv:1412.6550, eq. 3) and TinyBERT's hidden states (Jiao et al. 2020, arXiv:1909.10351, eq. 8).
    """
    return functional.mse_loss(student, teacher.detach())


def attention_maps(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of where the two look: the maps sum_c |a_c|^2, each of length 1 (Zagoruyko and Komodakis 2017,
    arXiv:1612.03928, eq. 2), mean over the examples.

    student, teacher: (B, C, spatial ...), of any channels; a teacher's map of another size is averaged to the student's.
    """
    teacher = teacher.detach()
    if teacher.shape[2:] != student.shape[2:]:
        pools: tuple[Any, ...] = (
            functional.adaptive_avg_pool1d,
            functional.adaptive_avg_pool2d,
            functional.adaptive_avg_pool3d,
        )
        teacher = pools[teacher.dim() - 3](teacher.square(), student.shape[2:]).sqrt()
    maps = [functional.normalize(value.square().sum(1).flatten(1), dim=1) for value in (student, teacher)]
    return (maps[0] - maps[1]).square().sum(1).mean()


def distances(student_BF: Tensor, teacher_BF: Tensor) -> Tensor:
    """Huber loss between the pairwise distances of a batch, each divided by its mean (RKD-D, Park et al. 2019,
    arXiv:1904.05068, eq. 5 to 7).
    """
    return functional.smooth_l1_loss(_relative_distances(student_BF), _relative_distances(teacher_BF.detach()))


def angles(student_BF: Tensor, teacher_BF: Tensor) -> Tensor:
    """Huber loss between the cosines of all angles that three examples make (RKD-A, arXiv:1904.05068, eq. 8 and 9).

    Memory B^3.
    """
    return functional.smooth_l1_loss(_angles(student_BF), _angles(teacher_BF.detach()))


def contrast(student_BP: Tensor, teacher_BP: Tensor, *, temperature: float = 0.1) -> Tensor:
    """-log of the share that an example's own teacher has among the teachers of the batch, in nats, less what the teachers
    themselves would score; features of length 1, divided by the temperature.

    The bound on mutual information of van den Oord et al. 2018, arXiv:1807.03748, eq. 4, between student and teacher.
    differs from the source: CRD (Tian et al. 2020, arXiv:1910.10699) contrasts with thousands of stored examples, this with
    those of the batch.
    """
    student_BP, teacher_BP = functional.normalize(student_BP, dim=1), functional.normalize(teacher_BP.detach(), dim=1)
    own_B = torch.arange(len(student_BP), device=student_BP.device)
    floor = functional.cross_entropy(teacher_BP @ teacher_BP.T / temperature, own_B)
    return functional.cross_entropy(student_BP @ teacher_BP.T / temperature, own_B) - floor


def relations(student_BHTD: Tensor, teacher_BHTD: Tensor, mask_BT: Tensor | None = None) -> Tensor:
    """KL between softmax(x x^T / sqrt(D)) of the two, mean over heads and tokens: x the queries, keys or values, cut into equal
    numbers of relation heads (MiniLMv2, Wang et al. 2021, arXiv:2012.15828, eq. 3 and 4). Widths of heads may differ.
    mask_BT: False for tokens that are padding.
    """
    teacher_BHTT, student_BHTT = (_relation(value, mask_BT) for value in (teacher_BHTD.detach(), student_BHTD))
    divergence_BHT = (teacher_BHTT.exp() * (teacher_BHTT - student_BHTT)).sum(-1)
    return divergence_BHT.mean() if mask_BT is None else divergence_BHT.transpose(0, 1)[:, mask_BT].mean()


def attention(student_BHTT: Tensor, teacher_BHTT: Tensor) -> Tensor:
    """KL between attention distributions, logits before the softmax, mean over heads and tokens (MiniLM, Wang et al. 2020,
    arXiv:2002.10957, eq. 4). Numbers of heads must agree.
    """
    log_teacher, log_student = teacher_BHTT.detach().log_softmax(-1), student_BHTT.log_softmax(-1)
    return (log_teacher.exp() * (log_teacher - log_student)).sum(-1).mean()


def similarity(one_BF: Tensor, other_BF: Tensor) -> Tensor:
    """Linear centred kernel alignment in [0, 1], a scalar: 1 for features equal up to rotation and scale (Kornblith et al.
    2019, arXiv:1905.00414, eq. 8); which layer of one network matches which of another.
    """
    one_BF, other_BF = (value - value.mean(0) for value in (one_BF.double(), other_BF.double()))
    kernels = [value @ value.T for value in (one_BF, other_BF)]
    norms: Tensor = torch.linalg.matrix_norm(kernels[0]) * torch.linalg.matrix_norm(kernels[1])
    return ((kernels[0] * kernels[1]).sum() / norms.clamp_min(_TINY)).float()


def _relative_distances(x_BF: Tensor) -> Tensor:
    """Pairwise distances, each pair once, divided by their mean."""
    first, second = torch.triu_indices(len(x_BF), len(x_BF), 1, device=x_BF.device)
    distance = (x_BF[first] - x_BF[second]).square().sum(1).clamp_min(_TINY).sqrt()
    return distance / distance.mean()


def _angles(x_BF: Tensor) -> Tensor:
    """cos of the angle at j between i and k, shape B x B x B; 0 where two of them are one."""
    direction_BBF: Tensor = functional.normalize(x_BF[None] - x_BF[:, None], dim=2)
    return direction_BBF @ direction_BBF.mT


def _relation(x_BHTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    """log softmax of the scaled products of all tokens."""
    products_BHTT: Tensor = x_BHTD @ x_BHTD.mT / float(x_BHTD.shape[-1]) ** 0.5
    if mask_BT is not None:
        # finite: the difference of two infinities would be none
        products_BHTT = products_BHTT.masked_fill(~mask_BT[:, None, None, :], _NEVER)
    return products_BHTT.log_softmax(-1)
