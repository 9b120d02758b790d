"""Teaching and reproduction workbook for 3D CT vision-language models: the small library behind the notebooks."""

__version__ = "0.1.0"
