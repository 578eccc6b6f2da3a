import base64
import hashlib
import re
from html.parser import HTMLParser
from importlib import resources

import pytest
from report.samples import SAMPLES, infeasible, large, small, thumbnail

from lighten.report.page import page
from lighten.report.sections import damage, evidence, layers

VOID = {"img", "meta", "wbr"}
HOSTILE = "<script>alert('x')</script><img src=x onerror=\"alert(1)\">"


class Reader(HTMLParser):
    """Checks that every tag is closed in order, and keeps what the tests ask about."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(content)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        """What is read, with plain spaces and hyphens."""
        return " ".join("".join(self.words).split()).replace("\N{MINUS SIGN}", "-")

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.mark.parametrize("name", SAMPLES)
def test_every_tag_is_closed_in_order_and_headings_do_not_skip_a_level(name):
    found = Reader(page(SAMPLES[name]()))
    assert len(found.all("h1")) == 1
    assert [tag for tag, _ in found.tags if re.fullmatch("h[3-6]", tag)] == []


@pytest.mark.parametrize("name", SAMPLES)
def test_nothing_is_fetched(name):
    content = page(SAMPLES[name]())
    targets = [value for _, attributes in Reader(content).tags for key, value in attributes.items() if key in ("src", "href")]
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in targets)
    assert not re.search(r"url\(|@import|https?:", content)
    policies = [meta["content"] for meta in Reader(content).all("meta") if "http-equiv" in meta]
    assert len(policies) == 1
    assert policies[0].startswith("default-src 'none'; img-src data:;")


def test_links_lead_to_sections_and_identifiers_are_unique():
    found = Reader(page(small()))
    identifiers = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers)) == 22  # eleven sections and their titles
    assert {f"#{key}" for key in identifiers if not key.endswith("-title")} == {link["href"] for link in found.all("a")}


def test_pictures_are_named_or_hidden_from_screen_readers():
    found = Reader(page(large()))
    assert all(svg.get("aria-label") or svg.get("aria-hidden") == "true" for svg in found.all("svg"))
    assert all(image["alt"] for image in found.all("img"))


def test_figures_on_the_page_are_those_of_the_report():
    text = Reader(page(small())).text
    for written in (
        "Contract met",
        "Accuracy97.22 %97.00 %Drop 0.22 % (95 %: -0.10 % to 0.54 %)",
        "File size1.24 MB342 kB0.28 of the original",  # 342,118 / 1,243,872 = 0.275
        "Latency, median1.21 ms0.657 ms1.84 times as fast (95 %: 1.79 to 1.90)",
        "Latency, 95th percentile1.38 ms0.702 ms1.97 times as fast",
        "Parameters308 k308 kThe same",
        "MACs4.18 M4.18 MThe same",
        "Peak memory48.0 MB48.0 MBThe same",
        "limit 400 kB",
        "3 predictions changed among 449 examples: 2 from right to wrong, 1 from wrong to right.",
        "8 of 9 operators run on integers",
        "Threads2",
        "Input shapes1 \N{MULTIPLICATION SIGN} 1 \N{MULTIPLICATION SIGN} 8 \N{MULTIPLICATION SIGN} 8",
        "File against torch, largest difference0.0312",
        "the original timed twice: ratio 1.004",
        "digits.npz, row 17The image holds NaN.",
        "calibrate activation ranges5.17 s3.24 sobserver mse, examples 256",  # 5.17 - 1.93
    ):
        assert written in text, written


def test_layers_are_listed_largest_first_with_their_figures():
    report = small()
    found = Reader(page(report)).text
    by_size = sorted(report["layers"], key=lambda layer: -layer["weight_bytes_before"])
    places = [found.index(f"{layer['site']}{layer['kind']}") for layer in by_size]
    assert places == sorted(places)
    assert f"{by_size[0]['error_sqnr_db']:.1f} dB" in found


def test_bars_are_as_long_as_the_figures_say():
    content = page(small())
    assert 'class="fill after" style="width:27.50%"' in content  # 342,118 / 1,243,872
    assert 'class="fill after" style="width:54.30%"' in content  # 0.657 / 1.21
    assert 'class="length harm" style="--share:1.0000"' in content
    assert 'class="length gain" style="--share:0.5000"' in content  # 1 of at most 2


def test_an_infeasible_contract_names_each_broken_limit_with_its_number():
    text = Reader(page(infeasible())).text
    assert "Contract infeasible" in text
    assert "2 limits of the contract broken" in text
    assert "File size 23.4 MB, limit 20.0 MB. Every layer is in int8 already" in text
    assert "Latency 5.81 ms, limit 4.00 ms." in text
    assert "holds, not yet certain" in text  # the drop is below its limit, its interval is not
    assert "not faster than the original" in text


def test_user_text_is_escaped_everywhere():
    report = small()
    report["model"]["source"] = report["metric"] = report["runtime"] = report["device"] = HOSTILE
    report["notes"] = [HOSTILE]
    report["decision"]["sentence"] = HOSTILE
    report["broken"] = [{"constraint": HOSTILE, "why": HOSTILE, "limit": 1, "measured": 2}]
    report["flips"]["per_class"] = {HOSTILE: {"changed": 1, "right_to_wrong": 1}}
    report["flips"]["examples"] = [
        dict.fromkeys(("title", "text", "target", "before", "after"), HOSTILE) | {"image_png_base64": '"><script>'}
    ]
    report["layers"] = [{"site": HOSTILE, "kind": HOSTILE, "spec": HOSTILE, "why": HOSTILE}]
    report["candidates"] = [{"name": HOSTILE, "why": HOSTILE}]
    report["steps"] = [{"what": HOSTILE, HOSTILE: HOSTILE}]
    report["operators"] = {HOSTILE: 1}
    report["data"]["bad_rows"] = [{"where": HOSTILE, "why": HOSTILE}]
    content = page(report)
    assert len(Reader(content).all("script")) == 1  # our own
    assert Reader(content).all("img") == []
    assert content.count("alert(") == content.count("alert(&#x27;x&#x27;)") + content.count("alert(1)&quot;")


def test_the_policy_admits_our_own_script():
    content = page({})
    script = re.search("<script>(.*?)</script>", content, re.DOTALL).group(1)
    assert f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}" in content


def test_fifty_large_thumbnails_stay_below_six_megabytes():
    report = large(num_layers=2_000, num_classes=3_000)
    header = thumbnail(0)[:64]
    for example in report["flips"]["examples"]:
        example["image_png_base64"] = header + "A" * 200_000
    content = page(report)
    assert len(content.encode()) < 6_000_000
    assert len(Reader(content).all("img")) == damage.MAX_IMAGE_CHARACTERS // 200_064
    assert "Some thumbnails are left out" in content
    assert f"The {layers.MAX_ROWS:,} largest are listed" in content


def test_long_lists_are_cut_and_say_so():
    report = small()
    report["data"]["bad_rows"] = [{"where": f"row {number}", "why": "empty"} for number in range(evidence.MAX_ROWS + 1)]
    text = Reader(page(report)).text
    assert "201 rows could not be used" in text
    assert "The first 200 are listed" in text


@pytest.mark.parametrize("key", sorted(small()))
def test_any_key_may_be_missing_or_null(key):
    whole = infeasible()
    Reader(page({name: value for name, value in whole.items() if name != key}))
    Reader(page(whole | {key: None}))


def test_any_inner_key_may_be_null():
    def without(value, place):
        """The report with the inner entry number `place` nulled; counts down as it goes."""
        if isinstance(value, dict):
            return {name: without(entry, place) for name, entry in value.items()}
        if isinstance(value, list):
            return [without(entry, place) for entry in value]
        place[0] -= 1
        return None if place[0] == 0 else value

    total = [0]
    without(small(), total)
    for number in range(1, -total[0] + 1):
        Reader(page(without(small(), [number])))


def test_an_empty_report_says_that_nothing_was_measured():
    text = Reader(page({})).text
    assert "No verdict" in text
    assert "Nothing was measured." in text
    assert text.count("not measured") == 3


def test_numbers_that_are_not_finite_are_shown_as_unknown():
    report = small()
    report["drop"] = report["contract"]["max_drop"]["measured"] = float("nan")
    report["parity"]["sqnr_db"] = float("inf")
    text = Reader(page(report)).text
    assert "nan" not in text.lower().replace("holds nan", "")
    assert "inf " not in text


def test_tasks_without_classes_show_values():
    report = {"flips": {"count": None, "examples": [{"index": 4, "target": 0.5, "before": 0.51234, "after": 0.25}]}}
    text = Reader(page(report)).text
    assert "truth0.5000before0.5123after0.2500" in text


def test_text_has_enough_contrast_in_light_and_dark():
    sheet = resources.files("lighten.report").joinpath("style.css").read_text()
    for palette in re.findall(r":root \{(.*?)\}", sheet, re.DOTALL)[:2]:
        colour = dict(re.findall(r"--(\w+): #([0-9a-f]{6})", palette))
        for name in ("ink", "muted", "harm", "gain", "after"):
            assert contrast(colour[name], colour["paper"]) >= 4.5, name  # WCAG 2.2, 1.4.3: text
        for name in ("before", "error"):
            assert contrast(colour[name], colour["paper"]) >= 3, name  # 1.4.11: graphics


def contrast(one: str, other: str) -> float:
    """WCAG contrast ratio of two hexadecimal colours."""
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    parts = (int(colour[place : place + 2], 16) / 255 for place in (0, 2, 4))
    linear = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_the_widths_are_shown_before_and_after():
    found = page(small())
    assert "2 groups: 1,312 channels became 664." in found
    assert "stages.<wbr>0.<wbr>conv1" in found


def test_without_pruning_there_is_no_section_of_widths():
    assert 'id="widths"' not in page({**small(), "widths": []})
