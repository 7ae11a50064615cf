from benchmarks.readme import README, render


def test_the_table_of_results_is_rendered_from_the_weights():
    assert render() in README.read_text()
