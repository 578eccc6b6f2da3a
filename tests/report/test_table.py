from report.samples import infeasible, small

from lighten.report.table import table


def test_a_known_report_gives_this_text():
    report = small()
    report["notes"] = ["Residual additions compute in float."]
    assert table(report).splitlines() == [
        "                          original  compressed  change",
        "Accuracy                   97.22 %     97.00 %  drop 0.22 % (95 %: -0.10 % to 0.54 %)",
        "File size                  1.24 MB      342 kB  0.28 of the original",
        "Latency, median            1.21 ms    0.657 ms  1.84 times as fast (95 %: 1.79 to 1.90)",
        "Latency, 95th percentile   1.38 ms    0.702 ms  1.97 times as fast",
        "Parameters                   308 k       308 k  the same",
        "MACs                        4.18 M      4.18 M  the same",
        "Peak memory                48.0 MB     48.0 MB  the same",
        "",
        "Contract met.",
        "  Drop          0.22 %  limit    1.00 %  holds",
        "  File size     342 kB  limit    400 kB  holds",
        "  Latency     0.657 ms  limit   1.00 ms  holds",
        "",
        "Residual additions compute in float.",
    ]


def test_a_broken_limit_gives_its_reason():
    text = table(infeasible())
    assert "Contract infeasible." in text
    assert "  File size    23.4 MB  limit   20.0 MB  broken: Every layer is in int8 already" in text


def test_an_empty_report_has_a_table_too():
    assert table({}) == "Nothing was measured.\n\nNo verdict."


def test_a_quantity_only_one_side_knows_has_a_dash_and_no_change():
    lines = table({"baseline": {"size_bytes": 1_000_000}}).splitlines()
    assert lines[1] == "File size   1.00 MB           \N{EN DASH}"
