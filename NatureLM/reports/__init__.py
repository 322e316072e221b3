"""Reports: answers to one page that can be read anywhere, with figures and tables beside it.

from NatureLM.reports import make_report, write_report

report = make_report(score(["answers.jsonl.gz"], [protocol("paper")]))
write_report(report, "report")
"""

from __future__ import annotations

from NatureLM.reports.report import Report, make_report
from NatureLM.reports.study import Line, lines_of
from NatureLM.reports.write import write_report

__all__ = ["Line", "Report", "lines_of", "make_report", "write_report"]
