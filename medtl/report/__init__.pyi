from .kit import Drawing as Drawing, interval_figure as interval_figure
from .overlays import Overlay as Overlay, images_of as images_of, worst_overlays as worst_overlays
from .parts import (
    Cell as Cell,
    Section as Section,
    Table as Table,
    TableBuilder as TableBuilder,
    plain as plain,
)
from .write import write_page as write_page, write_report as write_report
