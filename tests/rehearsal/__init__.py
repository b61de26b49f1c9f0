"""The rehearsal: the main job of the 8B scale, by its own recipe and commands, with a narrow model.

`make rehearse` runs it (`python -m tests.rehearsal`), and `make test-sglang` checks what it leaves.
"""
