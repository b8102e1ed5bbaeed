"""The code of the documentation: classes of its blocks, and pages that are run as they are written.

``python -m tests.pages FOLDER [PAGE...]`` runs pages there, by default all that are not tutorials.
"""
