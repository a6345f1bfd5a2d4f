"""What runs came to, as one page: `read.py` reads their folders, `report.py` is the story, `template/` the form."""
