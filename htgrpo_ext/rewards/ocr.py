"""Text read off pictures by RapidOCR (`rapidocr-onnxruntime`), on the CPU; its wheel brings the models, PP-OCRv4."""

import os

from torch import Tensor

from htgrpo_ext.errors import UserError, one_line


class Reader:
    """A reader of pictures. The same picture is always read alike; neither neighbours nor threads matter.

    detection  True: find the lines of text, and read each. False: the whole picture is one line, which is much quicker
    threads    of the models; at most the machine's cores

    Raises UserError if the package cannot be imported.
    """

    def __init__(self, detection: bool = True, threads: int = 1):
        if threads < 1:
            raise UserError(f"reward ocr: option `threads` is {threads}, not a number from 1")
        try:
            from rapidocr_onnxruntime import RapidOCR
        except ImportError as error:  # opencv-python lacks libGL on many servers; the headless build does not need it
            raise UserError(
                f"reward ocr: rapidocr_onnxruntime cannot be imported ({one_line(error)}); pip install "
                "'htgrpo-ext[ocr]', then pip install --no-deps rapidocr-onnxruntime"
            ) from None
        # More threads than cores would be ignored, and all cores taken.
        self._engine = RapidOCR(intra_op_num_threads=min(threads, os.cpu_count() or 1), inter_op_num_threads=1)
        self._detection = detection

    def read(self, levels_3HW: Tensor) -> str:
        """The text of a picture, uint8 [3, H, W]; empty if there is none. Lines are in reading order, a space between.

        Angles are not corrected: text that stands on its head is wrong. Detection drops lines that are read with less
        confidence than 0.5, RapidOCR's default.
        """
        blue_first_HW3 = levels_3HW.flip(0).permute(1, 2, 0).contiguous().numpy()
        found, _ = self._engine(blue_first_HW3, use_det=self._detection, use_cls=False)
        return " ".join(str(line[-2]) for line in found or [])
