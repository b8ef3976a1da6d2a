"""All but this is in pyproject.toml: a wheel holds configs/ and the micro model's checkpoint as data of the package.

They stay where they are, at the top of the repository; config.py finds them in either place.
"""

from setuptools import setup
from setuptools.command.build_py import build_py


class WithData(build_py):
    def run(self):
        super().run()
        if not self.editable_mode:
            for folder in ("configs", "assets"):
                self.copy_tree(folder, f"{self.build_lib}/htgrpo_ext/{folder}")


setup(cmdclass={"build_py": WithData})
