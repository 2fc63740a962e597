"""What people see: overlays (OpenCV only), plots and the HTML page (extra `report`).

Import from the modules: this file imports nothing, so that overlays load neither of the two.
"""
