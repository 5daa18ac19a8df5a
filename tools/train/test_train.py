"""Checks the export against the trainer: python -m unittest test_train"""

import math
import tempfile
import unittest
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import evaluate
import export
import train
from gguf_file import I2_S, Reader, pack_i2s, unpack_i2s, write
from model import HeadLoss, Shape, StoryModel, ternary

SMALL = Shape(vocab=512, layers=2, hidden=128, ffn=256, heads=2, kv_heads=1, context=64)


class I2S(unittest.TestCase):
    def test_bit_positions(self):
        trits = np.zeros((1, 128), np.int8)
        trits[0, [3, 35, 67, 99]] = [-1, 1, 0, 1]
        data = pack_i2s(trits, 0.5)
        self.assertEqual(len(data), 32 + 32)
        self.assertEqual(data[3], 0b00_10_01_10)
        self.assertEqual(data[4], 0b01_01_01_01)
        self.assertEqual(data[32:36], b"\0\0\0\x3f")

    def test_round_trip(self):
        trits = np.random.default_rng(1).integers(-1, 2, (7, 384)).astype(np.int8)
        back, scale = unpack_i2s(pack_i2s(trits, 0.25), 7, 384)
        self.assertTrue((back == trits).all())
        self.assertEqual(scale, 0.25)

    def test_rows_of_a_broken_block_are_refused(self):
        with self.assertRaisesRegex(ValueError, "128"):
            pack_i2s(np.zeros((1, 100), np.int8), 1.0)


class Export(unittest.TestCase):
    def test_evaluation_equals_the_trainers_forward(self):
        torch.manual_seed(3)
        model = StoryModel(SMALL)
        for p in model.parameters():
            if p.dim() == 1:
                p.data.uniform_(0.5, 1.5)
        model.token_embd.weight.data = model.token_embd.weight.data.half().float()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "m.gguf"
            tensors = [export.tensor(n, v) for n, v in model.state_dict().items()]
            write(path, export.shape_metadata(SMALL, 0), tensors)
            read = evaluate.Model(path)
            trits, scale = ternary(model.blk[1].ffn_down.weight.data)
            shape, kind, data = Reader(path).tensors["blk.1.ffn_down.weight"]
            self.assertEqual((shape, kind), ((128, 256), I2_S))
            self.assertTrue((unpack_i2s(data, *shape)[0] == trits.numpy()).all())
            self.assertEqual(unpack_i2s(data, *shape)[1], float(scale))
        ids = torch.randint(0, 512, (64,)).tolist()
        x, y = torch.tensor([ids[:-1]]), torch.tensor([ids[1:]])
        ours = read.nll(ids).mean().item()
        self.assertTrue(math.isfinite(ours))
        # The two round activations by formulas that differ in the last bit, so a code may flip.
        self.assertLess(abs(ours - model.loss(x, y).item()), 2e-3 * ours)


class Head(unittest.TestCase):
    def test_sliced_loss_has_the_gradients_of_the_plain_one(self):
        torch.manual_seed(5)
        h, w, y = torch.randn(1000, 32), torch.randn(64, 32), torch.randint(0, 64, (1000,))
        results = []
        for loss in (HeadLoss.apply, lambda h, w, y: F.cross_entropy(h @ w.T, y)):
            a, b = h.clone().requires_grad_(), w.clone().requires_grad_()
            value = loss(a, b, y)
            (2 * value).backward()
            results.append((value.detach(), a.grad, b.grad))
        for ours, plain in zip(*results):
            self.assertLess((ours - plain).abs().max().item(), 1e-5 * plain.abs().max().item() + 1e-9)


class Stream(unittest.TestCase):
    def test_position_is_enough_to_go_on(self):
        ids = np.arange(1000, dtype=np.uint16)
        data = {"ids": ids, "starts": np.arange(0, 1000, 100)}
        one, other = train.Stream(data), train.Stream(data)
        for _ in range(9):
            one.batch(4, 32)
        self.assertEqual(one.epoch, 1)
        other.seek(one.epoch, one.at)
        for a, b in zip(one.batch(4, 32), other.batch(4, 32)):
            self.assertTrue((a == b).all())
        x, y = one.batch(1, 32)
        self.assertTrue((x[0, 1:] == y[0, :-1]).all())


class Muon(unittest.TestCase):
    def test_singular_values_come_near_one(self):
        torch.manual_seed(4)
        for shape in [(2, 64, 64), (1, 96, 32), (1, 32, 96)]:
            values = torch.linalg.svdvals(train.orthogonalize(torch.randn(shape), 5))
            self.assertGreater(values.max().item(), 0.7)
            self.assertLess(values.max().item(), 1.3)
            self.assertGreater(values.median().item(), 0.6)


if __name__ == "__main__":
    unittest.main()
