"""Work: the student against its teacher, both as stock `transformers` runs them."""

import statistics
from functools import cache

import torch
from transformers import BertForSequenceClassification

from stages.distillation.compatibility import forward_flops
from stages.distillation.device import has_fast_bf16
from tests.bench.machine import Machine, seconds
from tests.bench.place import STUDENT, Place
from tests.bench.reference import STOCK, run_classifier
from tests.bench.work import TOLERANCE, Work


def student_inference(place: Place, length: int = 128, batch: int = 32) -> Work:
    """Rows a second of full length: both sides in fp32, with SDPA, without gradients, warmed up.

    Told beside it: one row at a time, and, where bf16 products are fast, both in the precision that is fastest for each.
    """

    @cache
    def model(which: str, dtype: torch.dtype = torch.float32) -> BertForSequenceClassification:
        return place.stock(getattr(place, which), "sdpa").to(dtype)

    def speed(which: str, rows: int, times: int, dtype: torch.dtype = torch.float32) -> float:
        ids = torch.randint(1000, 30000, (rows, length), device=place.device)
        mask = torch.ones_like(ids)

        @torch.no_grad()
        def run() -> None:
            model(which, dtype)(input_ids=ids, attention_mask=mask)

        run()
        return rows / statistics.median(seconds(run, place.device) for _ in range(times))

    def more() -> list[tuple[str, str, float, float]]:
        told = [("batch 1", "rows/s", speed("teacher", 1, 5), speed("student", 1, 20))]
        for rows in (batch, 1) if has_fast_bf16(place.device) else ():
            fastest = [
                max(speed(which, rows, 5, dtype) for dtype in (torch.float32, torch.bfloat16))
                for which in ("teacher", "student")
            ]
            told.append((f"batch {rows}, fastest", "rows/s", *fastest))
        return told

    def limit(machine: Machine) -> float:
        return batch / machine.seconds(forward_flops(STUDENT, batch * length, length), 0, "fp32")

    def agrees() -> bool:
        ids = torch.randint(1000, 30000, (2, length), device=place.device)
        ones, zeros = torch.ones_like(ids), torch.zeros_like(ids)
        for which in ("teacher", "student"):
            with torch.no_grad():
                plain = run_classifier(model(which), ids, ones, zeros, **STOCK)[2]
                stock = model(which)(input_ids=ids, attention_mask=ones).logits
            if (plain - stock).norm() > TOLERANCE * plain.norm():
                return False
        return True

    return Work(
        "student-inference-128", "rows/s", None, lambda repeat: speed("teacher", batch, 2),
        lambda repeat: speed("student", batch, 10), limit, agrees, more=more,
    )  # fmt: skip
