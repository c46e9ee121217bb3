"""Text to token ids and back, with the tokenizer inside an export, around `generate`.

python text.py encode MODEL.pt < lines.txt | generate MODEL.pt | python text.py decode MODEL.pt

Every line is a turn. Needs the packages torch and tokenizers.
"""

import sys

import torch
from tokenizers import Tokenizer


def main() -> None:
    """Encode or decode standard input, line by line."""
    if len(sys.argv) != 3 or sys.argv[1] not in ("encode", "decode"):
        sys.exit("usage: text.py encode|decode MODEL.pt")
    tokenizer = Tokenizer.from_str(tokenizer_json(sys.argv[2]))
    for line in sys.stdin:
        if sys.argv[1] == "encode":
            print(*tokenizer.encode(line.rstrip("\n"), add_special_tokens=False).ids, flush=True)
        else:
            print(tokenizer.decode([int(word) for word in line.split()]), flush=True)


def tokenizer_json(path: str) -> str:
    """The tokenizer.json inside an export; the model itself is not loaded."""
    reader = torch._C.PyTorchFileReader(path)
    if not reader.has_record("extra/tokenizer.json"):
        sys.exit(f"text.py: {path}: expected an export with a tokenizer, got one without")
    return reader.get_record("extra/tokenizer.json").decode()


if __name__ == "__main__":
    main()
