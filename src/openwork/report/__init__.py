"""Results as text, pictures and pages; pure functions from plain data."""

from openwork.report.compare_page import compare_html as compare_html
from openwork.report.compare_page import compare_text as compare_text
from openwork.report.page import report_html as report_html
from openwork.report.suite_page import compare_table as compare_table
from openwork.report.suite_page import suite_html as suite_html
from openwork.report.table import markdown_table as markdown_table
from openwork.report.table import report_text as report_text
from openwork.report.table import text_table as text_table
