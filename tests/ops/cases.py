"""The table of cases: every operator is run on every row of it, on every device that there is."""

from __future__ import annotations

import torch

from .builders import FLOATS
from .case import (
    CASES,
    DIMS,
    HEADS,
    INF,
    INT64,
    NAN,
    SIZES,
    Case,
    case,
    logits_from,
    put,
    put_key,
    put_logit,
)

__all__ = ["CASES", "Case"]

# fmt: off
# --- token_importance ---------------------------------------------------------------------------
# rows, keys: numbers of queries and of keys in each sequence; heads: (H, Hkv); dim: D

op = "token_importance"
for heads in HEADS:
    for dim in DIMS:
        case(op, f"heads{heads}_dim{dim}", rows=[1, 5], keys=[33, 129], heads=heads, dim=dim)
for size in SIZES:
    case(op, f"size{size}", rows=[size % 7 + 1], keys=[size], heads=(2, 1), dim=64)
case(op, "one_token", rows=[1], keys=[1], heads=(4, 4), dim=64, smoke=True)
case(op, "last_query_gqa3", rows=[1], keys=[151], heads=(9, 3), dim=64, smoke=True)
case(op, "two_sequences_gqa7", rows=[1, 1], keys=[129, 1134], heads=(14, 2), dim=64)
case(op, "window32_gqa8", rows=[32], keys=[1134], heads=(8, 1), dim=96)
case(op, "window8_dim80", rows=[8, 8, 8], keys=[129, 8, 151], heads=(2, 2), dim=80, smoke=True)
case(op, "window33_dim128", rows=[33], keys=[300], heads=(6, 2), dim=128)
# More weights than are kept at once, in two parts.
case(op, "parts", rows=[12], keys=[24576], heads=(64, 1), dim=8, dtypes=(torch.float32,))
case(op, "dim256_softcap", rows=[32], keys=[151], heads=(4, 1), dim=256, softcap=30.0, smoke=True)
case(op, "dim1", rows=[3], keys=[17], heads=(1, 1), dim=1)
case(op, "dim0", rows=[2], keys=[9], heads=(2, 1), dim=0, scale=1.0)
case(op, "dim3", rows=[2], keys=[129], heads=(3, 1), dim=3, smoke=True)
case(op, "dim17", rows=[5], keys=[33], heads=(2, 1), dim=17)
case(op, "many_keys", rows=[1], keys=[5003], heads=(2, 1), dim=64)
case(op, "many_keys_window", rows=[32, 1], keys=[4097, 700], heads=(2, 1), dim=64)
case(op, "many_sequences", rows=[1] * 17, keys=list(range(1, 35, 2)), heads=(4, 2), dim=16)
case(op, "empty_sequences", rows=[0, 3, 0, 1, 2], keys=[5, 0, 0, 7, 9], heads=(2, 1), dim=8,
     smoke=True)
case(op, "no_queries", rows=[0], keys=[5], heads=(2, 1), dim=8)
case(op, "no_keys", rows=[3], keys=[0], heads=(2, 1), dim=8)
case(op, "nothing", rows=[0], keys=[0], heads=(2, 1), dim=8)
case(op, "unused", rows=[5, 9], keys=[40, 151], heads=(4, 2), dim=64, unused_rows=4,
     unused_keys=21, smoke=True)
case(op, "all_unused", rows=[0, 0], keys=[0, 0], heads=(2, 1), dim=8, unused_rows=3, unused_keys=5)
case(op, "early_queries", rows=[4], keys=[600], heads=(4, 2), dim=64, places="first")
case(op, "unordered_queries", rows=[19], keys=[129], heads=(4, 2), dim=64, places="shuffled")
case(op, "before_all_keys", rows=[2], keys=[9], heads=(2, 1), dim=8,
     edit=put("query_index", slice(None), 0), first_key=3)
case(op, "strided", rows=[3, 2], keys=[50, 61], heads=(6, 2), dim=64, layout="strided", smoke=True)
case(op, "misaligned", rows=[3, 2], keys=[50, 61], heads=(6, 2), dim=64, layout="misaligned")
case(op, "equal_keys", rows=[2], keys=[77], heads=(2, 1), dim=64,
     edit=put("key_store", slice(None), 0.5))
case(op, "rising_logits", rows=[2], keys=[1134], heads=(2, 1), dim=64, edit=logits_from(-20.0))
case(op, "peaked", rows=[8], keys=[300], heads=(4, 2), dim=64, scale=4.0)
case(op, "nan_key", rows=[8], keys=[151], heads=(4, 2), dim=64, edit=put_key(20, NAN), smoke=True)
case(op, "nan_key_one_head", rows=[1], keys=[151], heads=(4, 2), dim=64,
     edit=put_key(150, NAN, head=1, dim=63))
case(op, "nan_key_unseen", rows=[2], keys=[151], heads=(4, 2), dim=64, places="first",
     edit=put_key(150, NAN))
case(op, "nan_query_head", rows=[3], keys=[151], heads=(4, 2), dim=64,
     edit=put("query", (1, 2, 5), NAN), smoke=True)
case(op, "nan_queries", rows=[2], keys=[40], heads=(4, 2), dim=64,
     edit=put("query", slice(None), NAN))
case(op, "inf_logit", rows=[2], keys=[151], heads=(4, 2), dim=64, edit=put_logit(77, INF),
     smoke=True)
case(op, "minus_inf_logit", rows=[2], keys=[151], heads=(4, 2), dim=64, edit=put_logit(77, -INF),
     smoke=True)
case(op, "all_minus_inf", rows=[2], keys=[40], heads=(4, 2), dim=64,
     edit=put_logit(slice(None), -INF))

# --- select_tokens ------------------------------------------------------------------------------
# lengths: n; candidates: how many of the n are candidates; scores: see builders.SCORES

op = "select_tokens"
FLOAT32 = (torch.float32,)
for size in (*SIZES, 511, 512, 513, 1023, 1024, 1025, 2048, 4099):
    case(op, f"size{size}", lengths=[size], candidates=[size - size // 4], targets=[size // 3],
         pool=size % 4 * 2 + 1, scores="ties" if size % 2 else "random", dtypes=FLOAT32)
case(op, "one_token", lengths=[1], candidates=[1], targets=[1], dtypes=FLOAT32, smoke=True)
case(op, "all_tokens", lengths=[151], candidates=[151], targets=[30], dtypes=FLOAT32, smoke=True)
case(op, "pooled", lengths=[1134], candidates=[800], targets=[227], pool=7, protect_first=4,
     protect_last=32, dtypes=FLOAT32, smoke=True)
case(op, "pool_wider_than_all", lengths=[5], candidates=[5], targets=[3], pool=31, dtypes=FLOAT32)
case(op, "long", lengths=[20011], candidates=[15000], targets=[3001], pool=7, dtypes=FLOAT32)
case(op, "sequences", lengths=[129, 1, 0, 1134, 40], candidates=[100, 1, 0, 500, 0],
     targets=[12, 1, 3, 499, 5], pool=3, protect_last=1, dtypes=FLOAT32, smoke=True)
case(op, "many_sequences", lengths=list(range(1, 35)), candidates=list(range(1, 35)),
     targets=[5] * 34, pool=3, dtypes=FLOAT32)
case(op, "nothing", lengths=[0], candidates=[0], targets=[0], dtypes=FLOAT32)
case(op, "target_zero", lengths=[40], candidates=[30], targets=[0], cover=False, dtypes=FLOAT32)
case(op, "target_zero_takes_one", lengths=[40], candidates=[30], targets=[0], dtypes=FLOAT32)
case(op, "target_above_all", lengths=[40, 50], candidates=[30, 50], targets=[99, 50],
     dtypes=FLOAT32)
case(op, "all_but_one", lengths=[151], candidates=[129], targets=[128], dtypes=FLOAT32)
case(op, "keep_all", lengths=[40, 151], candidates=[30, 140], targets=[-1, 7], scores="bad",
     dtypes=FLOAT32, smoke=True)
case(op, "protected_cover_target", lengths=[60], candidates=[50], targets=[3], protect_first=5,
     protect_last=9, dtypes=FLOAT32)
case(op, "protected_beyond_target", lengths=[60], candidates=[50], targets=[3], protect_first=5,
     protect_last=9, cover=False, scores="ties", dtypes=FLOAT32, smoke=True)
case(op, "protect_everything", lengths=[20], candidates=[17], targets=[3], protect_first=50,
     protect_last=50, dtypes=FLOAT32)
case(op, "unused", lengths=[60, 151], candidates=[50, 70], targets=[20, 30], unused=23,
     dtypes=FLOAT32, smoke=True)
for where in ("unused_first", "unused_last"):
    case(op, where, lengths=[60, 40], candidates=[50, 20], targets=[20, 3], dtypes=FLOAT32,
         smoke=True, **{where: 8})
    case(op, f"{where}_protected", lengths=[60, 40], candidates=[50, 40], targets=[3, 3],
         protect_first=5, protect_last=4, dtypes=FLOAT32, **{where: 8})
case(op, "room", lengths=[60, 151], candidates=[50, 70], targets=[20, 30], room=11, dtypes=FLOAT32)
case(op, "ties", lengths=[151], candidates=[129], targets=[40], scores="ties", dtypes=FLOAT32,
     smoke=True)
case(op, "ties_pooled", lengths=[1134], candidates=[700], targets=[300], scores="ties", pool=5,
     protect_first=2, dtypes=FLOAT32)
case(op, "all_equal", lengths=[1134], candidates=[1000], targets=[501], scores="equal",
     dtypes=FLOAT32)
case(op, "signed_zeros", lengths=[129], candidates=[129], targets=[50], scores="zeros",
     dtypes=FLOAT32, smoke=True)
case(op, "negative", lengths=[129], candidates=[129], targets=[50], scores="negative",
     dtypes=FLOAT32)
case(op, "subnormal", lengths=[129], candidates=[129], targets=[50], scores="subnormal",
     dtypes=FLOAT32)
case(op, "bad", lengths=[151], candidates=[140], targets=[120], scores="bad", dtypes=FLOAT32,
     smoke=True)
case(op, "bad_pooled", lengths=[151], candidates=[140], targets=[130], scores="bad", pool=3,
     protect_first=3, protect_last=3, dtypes=FLOAT32)
case(op, "all_nan", lengths=[33], candidates=[20], targets=[9], scores="nan", protect_last=2,
     dtypes=FLOAT32)
case(op, "strided", lengths=[40, 50], candidates=[30, 50], targets=[9, 10], layout="strided",
     pool=3, dtypes=FLOAT32, smoke=True)

# --- aux_gather, aux_scatter_ -------------------------------------------------------------------
# stored: N; rows: R; shape: what a row is

for op in ("aux_gather", "aux_scatter_"):
    case(op, "hidden", stored=151, rows=129, shape=(576,), smoke=True)
    case(op, "one_row", stored=1, rows=1, shape=(64,))
    case(op, "odd_width", stored=40, rows=17, shape=(5,), smoke=True)
    case(op, "width1", stored=40, rows=17, shape=(1,))
    case(op, "heads", stored=40, rows=17, shape=(3, 64))
    case(op, "vector", stored=1134, rows=300, shape=(), dtypes=(*FLOATS, *INT64))
    case(op, "int64", stored=40, rows=17, shape=(3,), dtypes=INT64, smoke=True)
    case(op, "empty_row", stored=40, rows=17, shape=(0,))
    case(op, "no_rows", stored=40, rows=0, shape=(8,))
    case(op, "nothing_stored", stored=0, rows=0, shape=(8,))
    case(op, "unused", stored=40, rows=29, unused=12, shape=(64,), smoke=True)
    case(op, "all_unused", stored=0, rows=5, unused=5, shape=(64,))
    case(op, "strided", stored=40, rows=17, shape=(64,), layout="strided", smoke=True)
    case(op, "misaligned", stored=40, rows=17, unused=3, shape=(7,), layout="misaligned")
    for width, dtype in ((1, torch.int64), (2, torch.float32), (4, torch.bfloat16)):  # 8 bytes
        case(op, f"word_of_{width}_strided", stored=40, rows=17, unused=3, shape=(width,),
             layout="strided", dtypes=(dtype,), smoke=True)
    for width in (2, 3, 4, 8, 12, 16, 31, 32, 33):
        case(op, f"width{width}", stored=9, rows=7, unused=2, shape=(width,))
    case(op, "large", stored=1134, rows=1001, shape=(2048,), dtypes=(torch.bfloat16,))
for width in (1, 64):
    case("aux_scatter_", f"width{width}_from_strided_rows", stored=40, rows=17, unused=3,
         shape=(width,), rows_layout="strided", dtypes=INT64, smoke=True)
    case("aux_scatter_", f"width{width}_to_strided_rows", stored=40, rows=17, unused=3,
         shape=(width,), layout="strided", rows_layout="plain", dtypes=INT64, smoke=True)
case("aux_gather", "repeated", stored=3, rows=129, shape=(64,), repeated=True)

# --- kv_append_ ---------------------------------------------------------------------------------
# stored: slots; tokens: T

op = "kv_append_"
case(op, "prefill", stored=1200, tokens=1134, kv_heads=3, dim=64, smoke=True)
case(op, "one_token", stored=151, tokens=1, kv_heads=2, dim=64)
case(op, "dim80", stored=151, tokens=129, kv_heads=7, dim=80)
case(op, "dim96", stored=40, tokens=17, kv_heads=1, dim=96)
case(op, "dim128", stored=40, tokens=17, kv_heads=8, dim=128)
case(op, "dim256", stored=40, tokens=17, kv_heads=1, dim=256)
case(op, "dim5", stored=40, tokens=17, kv_heads=3, dim=5, smoke=True)
case(op, "dim1", stored=40, tokens=17, kv_heads=1, dim=1)
case(op, "no_tokens", stored=40, tokens=0, kv_heads=1, dim=8)
case(op, "nothing_stored", stored=0, tokens=0, kv_heads=1, dim=8)
case(op, "unused", stored=40, tokens=29, unused=12, kv_heads=2, dim=64, smoke=True)
case(op, "strided", stored=40, tokens=29, kv_heads=3, dim=64, layout="strided", smoke=True)
case(op, "misaligned", stored=40, tokens=29, unused=3, kv_heads=3, dim=64, layout="misaligned")
for layout in ("strided", "misaligned"):
    case(op, f"from_{layout}_rows", stored=40, tokens=29, unused=3, kv_heads=3, dim=64,
         rows_layout=layout, smoke=True)
    case(op, f"to_{layout}_stores", stored=40, tokens=29, unused=3, kv_heads=3, dim=64,
         layout=layout, rows_layout="plain", smoke=True)
    case(op, f"{layout}_values", stored=40, tokens=29, kv_heads=3, dim=64, value_layout=layout)

# --- lazy_attention -----------------------------------------------------------------------------

op = "lazy_attention"
for heads in HEADS:
    for dim in DIMS:
        case(op, f"heads{heads}_dim{dim}", rows=[1, 18], keys=[33, 129], heads=heads, dim=dim,
             places="spread")
for size in SIZES:
    case(op, f"size{size}", rows=[size], keys=[size], heads=(2, 1), dim=64)
    case(op, f"rows{size}", rows=[size], keys=[40], heads=(2, 1), dim=16, places="anywhere", gaps=9)
case(op, "one_token", rows=[1], keys=[1], heads=(4, 4), dim=64, smoke=True)
case(op, "decode_gqa3", rows=[1], keys=[151], heads=(9, 3), dim=64, smoke=True)
case(op, "decode_gqa7", rows=[1, 1], keys=[129, 1134], heads=(14, 2), dim=64)
case(op, "revival_gqa8", rows=[5], keys=[1134], heads=(8, 1), dim=96, places="spread")
case(op, "rows129_gqa8", rows=[129], keys=[151], heads=(8, 1), dim=96, places="spread", smoke=True)
case(op, "rows151_dim80", rows=[151], keys=[600], heads=(2, 2), dim=80)
case(op, "dim128_gqa3", rows=[7, 40], keys=[300, 129], heads=(6, 2), dim=128)
case(op, "dim256_gemma", rows=[33], keys=[151], heads=(4, 1), dim=256, window=40, softcap=30.0,
     smoke=True)
case(op, "dim1", rows=[3], keys=[17], heads=(1, 1), dim=1)
case(op, "dim3", rows=[20], keys=[129], heads=(3, 1), dim=3, smoke=True)
case(op, "dim17", rows=[5], keys=[33], heads=(2, 1), dim=17)
case(op, "prefill", rows=[1134], keys=[1134], heads=(2, 1), dim=64)
case(op, "many_keys", rows=[2], keys=[5003], heads=(2, 1), dim=64)
case(op, "many_keys_many_rows", rows=[70, 1], keys=[3001, 2500], heads=(2, 1), dim=64)
case(op, "many_sequences", rows=[1] * 17, keys=list(range(1, 35, 2)), heads=(4, 2), dim=16)
case(op, "empty_sequences", rows=[0, 3, 0, 1, 20], keys=[5, 0, 0, 7, 29], heads=(2, 1), dim=8,
     smoke=True)
case(op, "no_rows", rows=[0], keys=[5], heads=(2, 1), dim=8)
case(op, "no_keys", rows=[3], keys=[0], heads=(2, 1), dim=8)
case(op, "nothing", rows=[0], keys=[0], heads=(2, 1), dim=8)
case(op, "unused", rows=[5, 40], keys=[40, 151], heads=(4, 2), dim=64, unused_rows=9,
     unused_keys=21, places="spread", smoke=True)
case(op, "all_unused", rows=[0, 0], keys=[0, 0], heads=(2, 1), dim=8, unused_rows=3, unused_keys=5)
case(op, "unordered", rows=[61, 7], keys=[129, 300], heads=(4, 2), dim=64, places="shuffled",
     smoke=True)
case(op, "unordered_window", rows=[61], keys=[300], heads=(4, 2), dim=64, places="shuffled",
     window=33)
case(op, "first_rows", rows=[40], keys=[600], heads=(4, 2), dim=64, places="first")
case(op, "before_all_keys", rows=[3], keys=[9], heads=(2, 1), dim=8,
     edit=put("query_index", slice(None, 2), 0), first_key=3)
case(op, "window1", rows=[40], keys=[129], heads=(4, 2), dim=64, window=1)
case(op, "window_between_keys", rows=[40], keys=[40], heads=(4, 2), dim=64, window=2, gaps=9,
     places="anywhere", smoke=True)
case(op, "window_beyond_all", rows=[40], keys=[129], heads=(4, 2), dim=64, window=10**6)
case(op, "window512", rows=[130, 1], keys=[1134, 900], heads=(2, 1), dim=64, window=512)
case(op, "few_rows_window", rows=[5, 1, 2], keys=[300, 40, 151], heads=(6, 2), dim=64, window=33,
     places="spread", smoke=True)
case(op, "few_rows_window16", rows=[4, 2], keys=[151, 600], heads=(8, 2), dim=80, window=16, gaps=1,
     smoke=True)
case(op, "few_rows_window_unordered", rows=[7], keys=[300], heads=(4, 2), dim=64, window=33,
     places="shuffled")
case(op, "few_rows_window_of_many_keys", rows=[3, 2], keys=[4500, 5003], heads=(4, 2), dim=64,
     window=3000, gaps=1)
case(op, "softcap", rows=[9], keys=[151], heads=(4, 2), dim=64, softcap=5.0, scale=1.0)
case(op, "softcap_few_rows", rows=[3], keys=[151], heads=(4, 2), dim=64, softcap=5.0, scale=1.0)
case(op, "strided", rows=[3, 20], keys=[50, 61], heads=(6, 2), dim=64, layout="strided", smoke=True)
case(op, "misaligned", rows=[3, 20], keys=[50, 61], heads=(6, 2), dim=64, layout="misaligned")
case(op, "strided_keys", rows=[3, 20], keys=[50, 61], heads=(6, 3), dim=64, layout="strided",
     value_layout="plain", smoke=True)
case(op, "strided_values", rows=[3, 20], keys=[50, 61], heads=(6, 3), dim=64,
     value_layout="strided", smoke=True)
case(op, "equal_keys", rows=[2], keys=[77], heads=(2, 1), dim=64,
     edit=put("key_store", slice(None), 0.5))
# Cut into ranges of keys, the last or the first of which outweighs all others by more than 2^127.
for rows in (2, 40):
    case(op, f"far_rising_logits_rows{rows}", rows=[rows], keys=[5003], heads=(2, 1), dim=64,
         edit=logits_from(-100.0), smoke=True)
    case(op, f"far_falling_logits_rows{rows}", rows=[rows], keys=[5003], heads=(2, 1), dim=64,
         edit=logits_from(100.0), smoke=True)
case(op, "rising_logits", rows=[2, 40], keys=[500, 1134], heads=(2, 1), dim=64,
     edit=logits_from(-20.0))
case(op, "peaked", rows=[20], keys=[300], heads=(4, 2), dim=64, scale=4.0)
case(op, "nan_key", rows=[40], keys=[151], heads=(4, 2), dim=64, places="spread",
     edit=put_key(100, NAN), smoke=True)
case(op, "nan_value", rows=[40], keys=[151], heads=(4, 2), dim=64, places="spread",
     edit=put_key(100, NAN, "value_store", dim=3), smoke=True)
case(op, "nan_behind_window", rows=[20], keys=[151], heads=(4, 2), dim=64, window=16,
     edit=put_key(100, NAN, "value_store"))
# Every token has a key. With a window of 16 some of the rows see the first of these keys, whether
# they are the rows of one panel or not; none sees the second, which is in a block that is read.
for rows, leaves, below in ((2, 134, 133), (41, 107, 94)):
    for what in ("key", "value"):
        case(op, f"nan_{what}_leaves_window_rows{rows}", rows=[rows], keys=[151], heads=(4, 2),
             dim=64, gaps=1, window=16, edit=put_key(leaves, NAN, f"{what}_store"), smoke=True)
        case(op, f"nan_{what}_below_window_rows{rows}", rows=[rows], keys=[151], heads=(4, 2),
             dim=64, gaps=1, window=16, edit=put_key(below, NAN, f"{what}_store"))
case(op, "nan_query", rows=[9], keys=[151], heads=(4, 2), dim=64,
     edit=put("query", (4, 2, 5), NAN))
case(op, "inf_value", rows=[9], keys=[151], heads=(4, 2), dim=64, places="spread",
     edit=put_key(77, INF, "value_store", dim=0))
case(op, "inf_logit", rows=[40], keys=[151], heads=(4, 2), dim=64, places="spread",
     edit=put_logit(77, INF))
case(op, "minus_inf_logit", rows=[9], keys=[151], heads=(4, 2), dim=64, edit=put_logit(77, -INF),
     smoke=True)
case(op, "all_minus_inf", rows=[9], keys=[40], heads=(4, 2), dim=64,
     edit=put_logit(slice(None), -INF))

# --- linear -------------------------------------------------------------------------------------
# rows: R; features: (I, O)

op = "linear"
for size in SIZES:
    case(op, f"rows{size % 7 + 1}_in{size}", rows=size % 7 + 1, features=(size, 33))
    case(op, f"rows{size % 5 + 1}_out{size}", rows=size % 5 + 1, features=(64, size))
case(op, "one_token", rows=1, features=(576, 1536), smoke=True)
case(op, "three_rows", rows=3, features=(1536, 576), smoke=True)
case(op, "rows17", rows=17, features=(896, 128))
case(op, "rows33", rows=33, features=(64, 41), smoke=True)
case(op, "rows64", rows=64, features=(2400, 96), smoke=True)
case(op, "rows6_part_of_a_tile", rows=6, features=(64, 1030), smoke=True)
case(op, "rows40_part_of_a_tile", rows=40, features=(96, 1047))
case(op, "rows64_dim80", rows=64, features=(80, 1134))
case(op, "no_bias", rows=5, features=(151, 129), bias=False, smoke=True)
case(op, "one_feature", rows=2, features=(1, 1))
case(op, "no_rows", rows=0, features=(8, 8))
case(op, "no_features", rows=3, features=(0, 5))
case(op, "no_output", rows=3, features=(5, 0), bias=False)
case(op, "strided", rows=7, features=(96, 40), layout="strided", smoke=True)
case(op, "misaligned", rows=7, features=(64, 40), layout="misaligned")
case(op, "nan_in_a_row", rows=5, features=(64, 40), edit=put("x", (1, 3), NAN))
case(op, "inf_in_a_weight", rows=5, features=(64, 40), edit=put("weight", (7, 3), INF))

# --- rms_norm -----------------------------------------------------------------------------------
# rows: R; dim: D

op = "rms_norm"
for dim in (1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 100, 128, 576, 1000, 4096):
    case(op, f"dim{dim}", rows=5, dim=dim, offset=float(dim % 2))
case(op, "one_token", rows=1, dim=576, smoke=True)
case(op, "prefill", rows=1134, dim=576)
case(op, "offset", rows=17, dim=640, offset=1.0, smoke=True)
case(op, "odd", rows=7, dim=43, smoke=True)
case(op, "no_rows", rows=0, dim=64)
case(op, "no_dim", rows=3, dim=0)
case(op, "strided", rows=17, dim=96, layout="strided", smoke=True)
case(op, "misaligned", rows=17, dim=96, layout="misaligned")
case(op, "nan", rows=5, dim=80, edit=put("x", (1, 25), NAN), smoke=True)
case(op, "inf", rows=5, dim=80, edit=put("x", (1, 25), INF))
case(op, "nan_in_the_weight", rows=5, dim=80, edit=put("weight", (25,), NAN))

# --- gated_activation ---------------------------------------------------------------------------
# rows: R; dim: I

op = "gated_activation"
for dim in (1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 1536):
    case(op, f"dim{dim}", rows=5, dim=dim, activation=("silu", "gelu_tanh")[dim % 2])
case(op, "one_token", rows=1, dim=1536, smoke=True)
case(op, "gelu", rows=17, dim=640, activation="gelu_tanh", smoke=True)
case(op, "prefill", rows=513, dim=1536)
case(op, "odd", rows=7, dim=43, smoke=True)
case(op, "no_rows", rows=0, dim=64)
case(op, "no_dim", rows=3, dim=0)
case(op, "strided", rows=17, dim=96, layout="strided", smoke=True)
case(op, "misaligned", rows=17, dim=96, layout="misaligned")
case(op, "strided_up", rows=17, dim=96, up_layout="strided", smoke=True)
case(op, "nan", rows=5, dim=80, edit=put("gate", (1, 25), NAN), smoke=True)
case(op, "inf", rows=5, dim=80, edit=put("gate", (1, 25), INF))
case(op, "minus_inf", rows=5, dim=80, edit=put("gate", (1, 25), -INF))
case(op, "far_below", rows=5, dim=80, edit=put("gate", slice(None), -200.0))
case(op, "inf_above", rows=5, dim=80, activation="gelu_tanh", edit=put("up", (1, 25), INF))

# --- rotate -------------------------------------------------------------------------------------
# rows: R; heads: H; dim: D; half: pairs that are rotated

op = "rotate"
for half in (1, 3, 4, 7, 8, 9, 15, 16, 17, 20, 31, 32, 33, 48, 64, 128):
    case(op, f"half{half}", rows=5, heads=3, dim=2 * half, half=half)
    case(op, f"half{half}_of_more", rows=5, heads=3, dim=2 * half + half % 5 + 1, half=half,
         interleaved=half % 2 == 0)
case(op, "one_token", rows=1, heads=9, dim=64, half=32, smoke=True)
case(op, "prefill", rows=1134, heads=9, dim=64, half=32)
case(op, "prefill_interleaved", rows=1134, heads=2, dim=128, half=32, interleaved=True)
case(op, "interleaved", rows=17, heads=4, dim=128, half=64, interleaved=True, smoke=True)
case(op, "interleaved_odd", rows=7, heads=3, dim=43, half=20, interleaved=True, smoke=True)
case(op, "partial", rows=17, heads=4, dim=80, half=16, smoke=True)
case(op, "odd", rows=7, heads=3, dim=9, half=3, smoke=True)
case(op, "nothing_rotated", rows=5, heads=2, dim=64, half=0)
case(op, "no_rows", rows=0, heads=2, dim=64, half=32)
case(op, "no_heads", rows=3, heads=0, dim=64, half=32)
case(op, "no_dim", rows=3, heads=2, dim=0, half=0)
case(op, "strided", rows=17, heads=3, dim=96, half=32, layout="strided", smoke=True)
case(op, "misaligned", rows=17, heads=3, dim=96, half=32, layout="misaligned")
case(op, "misaligned_interleaved", rows=17, heads=3, dim=96, half=48, layout="misaligned",
     interleaved=True)
case(op, "nan_in_a_pair", rows=5, heads=3, dim=80, half=20, edit=put("x", (1, 2, 25), NAN),
     smoke=True)
case(op, "nan_in_a_pair_interleaved", rows=5, heads=3, dim=80, half=20, interleaved=True,
     edit=put("x", (1, 2, 25), NAN))
case(op, "nan_in_an_angle", rows=5, heads=3, dim=80, half=20, edit=put("cos", (3, 19), NAN))
case(op, "nan_that_is_copied", rows=5, heads=3, dim=80, half=20, edit=put("x", (1, 2, 55), NAN))
case(op, "inf", rows=5, heads=3, dim=64, half=32, edit=put("x", (1, 2, 0), INF))
