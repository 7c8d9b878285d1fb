"""What can be wrong with rows, how it gets into a large clean file, and what is said of it. docs/defects.md has it."""

import gzip
import json
from random import Random

import pyarrow as pa
import torch

from sluice_api.data_report import Severity
from tests.unit.trainer import clean
from tests.unit.trainer.clean import ALPACA_JSON, ARROW, CALLS, COMPLETIONS, CSV, ORCA, PAIRS, TEXT
from tests.unit.trainer.conftest import CHATML
from tests.unit.trainer.planting import (
    Defect,
    at_random,
    column_twice,
    columns_changed,
    cut,
    cut_weights,
    held_out,
    instead,
    nearly,
    of_answer,
    of_question,
    of_tokenizer,
    of_turns,
    of_weights,
    replaced,
    smaller_vocabulary,
    twice,
    with_fields,
)  # fmt: skip

WARNING = Severity.WARNING

SPACES = b" " * 2**20 + b"\n"
"""A thousandth of it is left when it is packed."""
LONG = clean.sentence(Random("long"), 25)
NO_PROMPT = CHATML.replace("{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}", "")
NO_STOP = CHATML.replace("<|im_end|>", "<|im_start|>")
HTML = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head>\n<body>Please sign in.</body></html>\n"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 1234\n"
TOO_LONG = {"maxSequenceLength": 200}
TABLES = {"uri": "pvc://datasets/*.parquet"}
HELD_OUT = {"validation": {"uri": "pvc://datasets/second.jsonl"}}
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
CALL = {"id": "1", "type": "function", "function": {"name": "find", "arguments": "{}"}}

# What holds the rows
FILES = (
    Defect("A zip archive", "{file} is a zip archive, or a workbook. Unpack it, or save the sheet as CSV.",
           whole=instead(b"PK\x03\x04" + b"\0" * 500), name="rows.zip"),
    Defect("Packed with bzip2", "{file} is packed with bzip2. Unpack it, or pack it with gzip or zstd.",
           whole=instead(b"BZh91AY&SY" + b"\0" * 500), name="rows.jsonl.bz2"),
    Defect("A Python pickle", "{file} is a Python pickle, which is never opened. Write JSONL or Parquet.",
           whole=instead(b"\x80\x04\x95" + b"\0" * 500), name="rows.pkl"),
    Defect("A tar archive", "{file} is a tar archive. Unpack it.", name="rows.tar.gz",
           whole=instead(gzip.compress(b"rows.jsonl".ljust(257, b"\0") + b"ustar\0" + b"\0" * 500))),
    Defect("Packed twice", "{file} is packed twice. Unpack it once.", name="rows.jsonl.gz",
           whole=lambda whole, _: gzip.compress(gzip.compress(whole))),
    Defect("A database", "{file} is a database of SQLite. Export its table as CSV.",
           whole=instead(b"SQLite format 3\0" + b"\0" * 500), name="rows.db"),
    Defect("A decompression bomb (gzip)", "{file} becomes more than 200 times as large when it is unpacked, as no text "
           "does. Unpack it yourself, and look at it.",
           whole=lambda whole, _: gzip.compress(whole) + gzip.compress(SPACES) * 400, name="rows.jsonl.gz"),
    Defect("A decompression bomb (zstd)", "{file} becomes more than 200 times as large when it is unpacked, as no text "
           "does.", whole=lambda whole, _: pa.compress(whole + SPACES * 150, "zstd", asbytes=True), name="rows.zst"),
    Defect("gzip cut off", "{file} can't be unpacked: …. It is cut off or damaged; copy it again.",
           whole=lambda whole, random: at_random(cut)(gzip.compress(whole), random), name="rows.jsonl.gz"),
    Defect("UTF-16", "{file}: it is no UTF-8 text. Save it as UTF-8.",
           whole=lambda whole, _: whole.decode().encode("utf-16")),
    Defect("Parquet cut off", "{file} can't be read: …. It is cut off or damaged; copy it again.",
           clean=ORCA, whole=at_random(cut)),
    Defect("Arrow damaged", "{file} can't be read: …. It is cut off or damaged; copy it again.", clean=ARROW,
           whole=at_random(lambda whole, at: whole[:at] + b"\xff" * 4096 + whole[at + 4096 :])),
    Defect("An HTML page", "{file} is a page of HTML, as servers answer that ask for a login, or have no such file. "
           "Download the file itself; look at its address and credentials.", whole=instead(HTML)),
    Defect("A Git LFS pointer",
           "{file} is a pointer of Git LFS, and not the file that it stands for. Get that with git "
           "lfs pull.", whole=instead(LFS)),
    Defect("An empty file", "{file} is an empty file. Write one JSON object a line.", whole=instead(b"")),
    Defect("An empty file among others", "1 of 2 files have no rows, such as datasets/second.jsonl. Look "
           "whether they were written to their ends, or leave them out.", WARNING,
           second=lambda rows, at: b"", dataset={"uri": "pvc://datasets/*.jsonl"}),
    Defect("Rows inside of one object", "{at}: the row has \"data\", an array of 2000 objects, which seem to be the "
           "rows. Take them out: jq -c '.data[]' file.json > rows.jsonl",
           rows=lambda rows, _: [{"version": "1.0", "data": list(rows)}]),
    Defect("... over many lines", "datasets/rows.json, row 1: the row has \"train\", an array of 2000 objects, which "
           "seem to be the rows. Take them out: jq -c '.train[]' file.json > rows.jsonl", name="rows.json",
           whole=lambda whole, _: json.dumps({"train": [*map(json.loads, whole.splitlines())]}, indent=2).encode()),
    Defect("Columns instead of rows", "{at}: \"text\" is an object with a value for each row. Write rows, not columns: "
           "with pandas, to_json(path, orient=\"records\", lines=True)",
           clean=TEXT, rows=lambda rows, _: [{"text": {str(i): row["text"] for i, row in enumerate(rows)}}]),
    Defect("A row of 100 MB", "{at} is longer than 32 MiB. Write one JSON object a line (JSONL).",
           line=lambda line: line[:-1] + b', "more": "' + b"x" * 10**8 + b'"}'),
    Defect("A table with a column twice", "{file} has \"response\" twice. Give each column its own name.", clean=ORCA,
           whole=lambda whole, _: column_twice(whole, "response")),
    Defect("A column of another type in the second file",
           "…\ndatasets/second.parquet, rows 1, 2, 3, 4, 5: \"response\" is a number, "
           "not a string. Make \"response\" a string", clean=ORCA,
           second=columns_changed(lambda row: {**row, "response": 3}), dataset=TABLES),
    Defect("A missing column in the second file", "…\ndatasets/second.parquet, rows 1, 2, 3, 4, 5: the row has \"id\", "
           "\"system_prompt\", \"question\", not …\"prompt\" and \"completion\"", clean=ORCA,
           second=columns_changed(lambda row: {k: v for k, v in row.items() if k != "response"}), dataset=TABLES),
)  # fmt: skip

# JSON, CSV and the characters in them
TEXTS = (
    Defect("Broken JSON", "{at}: not JSON: Expecting ',' delimiter at column …. Write one JSON object a line",
           line=replaced(b'", "content"', b'" "content"')),
    Defect("A truncated last line", "datasets/rows.jsonl, line 2000: not JSON: …. Write one JSON object a line",
           whole=lambda whole, random: whole[: -random.randrange(9, 50)]),
    Defect("An array without a comma", "datasets/alpaca_data.json, row … (line …, column …): Expecting ',' delimiter. "
           "Mend the file there; as long as it is no JSON, nothing tells where the next row begins.", clean=ALPACA_JSON,
           whole=at_random(lambda whole, at: whole[:at] + whole[at:].replace(b"},\n", b"}\n", 1))),
    Defect("An array cut off", "datasets/alpaca_data.json, row … (line …, column …): …. Mend the file there",
           clean=ALPACA_JSON, whole=at_random(cut)),
    Defect("A trailing comma", "{at}: not JSON: a comma with nothing after it at column …. Remove the comma",
           line=lambda line: line[:-1] + b",}"),
    Defect("A trailing comma in an array", "datasets/alpaca_data.json, row 2001 (line 2002, column 1): a comma with "
           "nothing after it.", clean=ALPACA_JSON, whole=lambda whole, _: whole.replace(b"}\n]", b"},\n]")),
    Defect("A dictionary of Python", "{at}: not JSON: a dictionary as Python prints it. Write it with json.dumps, not "
           "with str or print", line=lambda line: str(json.loads(line)).encode()),
    Defect("None, True, NaN of Python",
           "{at}: not JSON: None is of Python at column …. Write null, or leave the field out",
           line=lambda line: line[:-1] + b', "system": None}'),
    Defect("Several objects on one line", "{at}: not JSON: something follows the first value at column …. Write each "
           "object on a line of its own: jq -c . file > rows.jsonl", line=lambda line: line + line),
    Defect("JSON inside of a string", "{at}: not a JSON object but a string with JSON inside. Take it out: jq -c "
           "fromjson file > rows.jsonl", line=lambda line: json.dumps(line.decode()).encode()),
    Defect("A line that is an array", "{at}: not a JSON object. Write an object such as {{\"messages\": [...]}}",
           line=lambda line: b"[" + line + b"]"),
    Defect("YAML", "{at}: not JSON: Expecting value at column 1. Write one JSON object a line",
           line=lambda line: b"messages: " + line),
    Defect("A byte order mark in the middle", "{at}: not JSON: a byte order mark, as files have it that were joined. "
           "Remove it: sed -i 's/\\xef\\xbb\\xbf//' file", line=lambda line: b"\xef\xbb\xbf" + line),
    Defect("Another encoding", "{at}: not UTF-8 (byte …). Save the file as UTF-8",
           line=replaced(b'"content": "', b'"content": "caf\xe9 ')),
    Defect("Half of a surrogate pair", "{at}: not Unicode: \\ud83d is half of a surrogate pair. Write the whole "
           "character, or remove the half", line=replaced(b'"content": "', b'"content": "\\ud83d ')),
    Defect("Text that was decoded wrongly",
           "1 rows have the character U+FFFD, which stands in the place of others that "
           "were lost, such as {at}. Read the original with its own encoding, and save it as UTF-8.",
           WARNING, row=of_answer(content="caf\ufffd")),
    Defect("A number of 5,000 digits", "{at}: it has a number of thousands of digits. Write it as a string",
           line=lambda line: line[:-1] + b', "id": ' + b"7" * 5000 + b"}"),
    Defect("Nested too deeply", "{at}: nested more than 100 deep. Make it flatter",
           line=lambda line: line[:-1] + b', "more": ' + b"[" * 99_999 + b"]" * 99_999 + b"}"),
    Defect("A CSV with an unclosed quote",
           "{file}, line …: a quote that opens in this row is not closed within 32 MiB. "
           "Close it, and write a quote inside of a text twice.", clean=CSV,
           whole=at_random(lambda whole, at: whole[:at] + whole[at:].replace(b"\r\n", b'\r\n"', 1))),
    Defect("A CSV row with more cells", "{at}: the row has 5 cells, the header 3. Write as many, and put a text with a "
           "separator or a line end into \"quotes\"", clean=CSV, line=lambda line: line + b", well, then"),
    Defect("A CSV with its header twice", "{at}: the row is the header once more. Remove it", clean=CSV,
           line=lambda line: b"instruction,input,output"),
    Defect("A CSV with a column twice",
           "{file}, line 1: the header has \"input\" twice. Give each column its own name.",
           clean=CSV, whole=lambda whole, _: whole.replace(b"output", b"input", 1)),
    Defect("A CSV without a header", "…\nlines 2, 3, 4, 5, 6: the row has \"…\", and no format has such "
           "fields. The file seems to have no header: give it one, such as instruction,output", clean=CSV,
           whole=lambda whole, _: whole.partition(b"\r\n")[2]),
)  # fmt: skip

# What a row says
ROWS = (
    Defect("Fields of other names",
           "…\nlines 1, 2, 3, 4, 5: the row has \"q\", \"a\", and no format has such fields. Set dataset.fields: "
           "{{prompt: q, completion: a}}.",
           rows=lambda rows, _: [{"q": each["messages"][0]["content"], "a": "Hello"} for each in rows]),
    Defect("A row without its fields", "{at}: the row has \"q\", \"a\", not \"messages\". Give the row \"messages\", "
           "or name its own fields in dataset.fields",
           row=lambda row: {"q": "Hi", "a": "Hello"}),
    Defect("Mixed formats", "{at}: the row is Alpaca, but line 1 is Messages. Write all rows in one format, or set "
           "dataset.format: Messages and dataset.onBadRow: Skip.", row=lambda row: {"instruction": "a", "output": "b"}),
    Defect("Two formats in one row", "datasets/text.jsonl, line 1: the row can be read as PromptCompletion or "
           "as Text. Set dataset.format to the one that is meant.",
           clean=TEXT, rows=lambda rows, _: [with_fields(prompt="a", completion="b")(row) for row in rows]),
    Defect("No assistant turn", "{at}: \"messages\" ends with the user; there is nothing to learn in this row. Add an "
           "assistant turn", row=of_turns(lambda turns: turns[:1])),
    Defect("A question without an answer",
           "{at}: \"messages\" ends with the user, who gets no answer. Add an assistant "
           "turn", row=of_turns(lambda turns: [*turns, turns[0]])),
    Defect("Roles out of order", "{at}: \"messages\" begins with the assistant. Put the user's turn before it",
           row=of_turns(lambda turns: [turns[1], turns[0], turns[1]])),
    Defect("Roles that the template refuses", "{at}: the model's chat template refuses the row: roles must alternate. "
           "Write the turns as the template expects", row=of_turns(lambda turns: [turns[0], *turns]),
           template="{% if messages[1] and messages[1].role == 'user' %}{{ raise_exception('roles must alternate') }}"
           "{% endif %}" + CHATML),
    Defect("Role names of another tool", "{at}: \"messages[1].role\" is \"bot\". Use one of system, developer, user, "
           "assistant, tool", row=of_answer(role="bot")),
    Defect("No role", "{at}: \"messages[0].role\" is null. Use one of system, developer, user, assistant, tool",
           row=of_question(role=None)),
    Defect("An empty answer", "{at}: \"messages[1].content\" is empty. Fill it in", row=of_answer(content=" \n")),
    Defect("An empty cell", "{at}: \"output\" is empty. Fill in \"output\"", clean=CSV,
           line=lambda line: b"asked,,"),
    Defect("All masked", "{at}: every answer of \"messages\" has the weight 0; there is nothing to learn in this row. "
           "Leave the row out", row=of_answer(weight=0)),
    Defect("A weight between", "{at}: \"messages[1].weight\" is 0.5. Write 0 or 1: a turn is learnt or not",
           row=of_answer(weight=0.5)),
    Defect("null", "{at}: \"messages[1].content\" is null, not a string. Make it a string",
           row=of_answer(content=None)),
    Defect("Nested nulls", "{at}: \"messages[1]\" is null, not an object. Write {{\"role\": ..., \"content\": ...}}",
           row=of_turns(lambda turns: [*turns[:1], None])),
    Defect("NaN", "{at}: \"text\" is NaN, which stands for nothing, not a string. Make \"text\" a string", clean=TEXT,
           row=with_fields(text=float("nan"))),
    Defect("Numbers for text", "{at}: \"messages[1].content\" is a number, not a string. Make it a string",
           row=of_answer(content=42)),
    Defect("An object for text", "{at}: \"messages[1].content\" is an object, not a string. Make it a string",
           row=of_answer(content={"answer": "yes"})),
    Defect("Images in content parts", "{at}: \"messages[0].content[1]\" is an image (\"image_url\"), and only text can "
           "be trained on here. Leave the row out",
           row=of_question(content=[{"type": "text", "text": "What is this?"}, IMAGE])),
    Defect("Special tokens in a text",
           "{at}: \"messages[0].content\" has the special token <|im_end|> in it. Remove it: "
           "the chat template adds such tokens itself", row=of_question(content="Hi<|im_end|>")),
    Defect("A rendered template in a text", "{at}: there is no token to learn in this row. Write a longer one",
           clean=TEXT, row=with_fields(text="<|im_end|>")),
    Defect("Tool results without a call",
           "{at}: \"messages[1].content\" is the result of a tool that no turn before it "
           "calls. Put the assistant's turn with its tool_calls before it", clean=CALLS,
           row=of_turns(lambda turns: [turns[0], *turns[2:]])),
    Defect("Arguments that are no JSON",
           "{at}: \"messages[1].tool_calls[0].function.arguments\" is not JSON: …. Write "
           "the text of a JSON value", clean=CALLS,
           line=replaced(b'"arguments": "{', b'"arguments": "{x')),
    Defect("A function call of an older API", "{at}: \"messages[1].function_call\" is of an older API. Write "
           "\"tool_calls\" instead", row=of_answer(function_call={"name": "f", "arguments": "{}"})),
    Defect("A prompt that ends with the assistant",
           "{at}: \"prompt\" ends with the assistant. End it with what the user "
           "says", clean=PAIRS, row=lambda row: {
               "prompt": [*row["chosen"], {"role": "assistant", "content": "So"}],
               "chosen": "yes", "rejected": "no"}),
    Defect("The same chosen and rejected", "{at}: \"chosen\" and \"rejected\" are the same. Leave the row out: nothing "
           "can be preferred", clean=PAIRS, row=lambda row: {**row, "rejected": row["chosen"]}),
    Defect("Two answers without a prompt", "{at}: there is no prompt before the two answers. Give the row "
           "\"prompt\", or name its own field of it: dataset.fields: {{prompt: ...}}", clean=PAIRS,
           row=with_fields(chosen="yes", rejected="no")),
    Defect("Arguments under another name", "{at}: \"messages[1].tool_calls[0].function\" has \"parameters\", and no "
           "\"arguments\". Call what the function is given \"arguments\"", clean=CALLS,
           row=of_turns(lambda turns: [turns[0], {**turns[1], "tool_calls": [
               {"function": {"name": "find", "parameters": {}}}]}, *turns[2:]])),
    Defect("Turns as Python prints them", "{at}: \"messages\" is not JSON: a dictionary as Python prints it. Write it "
           "with json.dumps, not with str or print", row=lambda row: {"messages": str(row["messages"])}),
    Defect("KTO labels", "{at}: \"label\" says whether an answer is good (KTO), and what it calls bad would be learnt "
           "too. Keep the good rows without \"label\"", clean=COMPLETIONS, row=with_fields(label=True)),
    Defect("Tokens of another model",
           "{at}: \"input_ids\" has 99999, which is no token of the model. Tokenise the rows "
           "with this model's tokenizer", clean=TEXT, rows=lambda rows, at: [
               {"input_ids": [9, 8, 99999 if i == at else 7], "labels": [-100, 8, 99999 if i == at else 7]}
               for i in range(len(rows))]),
    Defect("Labels that are shifted", "{at}: \"labels[0]\" is 8, and \"input_ids[0]\" is 9. Write the same id, or -100 "
           "for a token that is not learnt; labels are not shifted", clean=TEXT, rows=lambda rows, at: [
               {"input_ids": [9, 8, 7], "labels": [8, 7, -100] if i == at else [-100, 8, 7]}
               for i in range(len(rows))]),
)  # fmt: skip

# Rows with a model and its chat template
MODELS = (
    Defect("The wrong tokenizer", "model.uri pvc://models/tiny: the tokenizer has 292 tokens, the model 200. Restore "
           "the tokenizer that belongs to the model.", model=smaller_vocabulary),
    Defect("A tokenizer of another class", "model.uri pvc://models/tiny: LlamaTokenizer, which its "
           "tokenizer_config.json names, loses spaces or line ends that its tokenizer.json keeps, here and when it "
           "serves. Set tokenizer_class to PreTrainedTokenizerFast there.",
           model=of_tokenizer(tokenizer_class="LlamaTokenizerFast")),
    Defect("No end-of-text token", "model.uri pvc://models/tiny: its tokenizer has no eos_token, with which an answer "
           "or a text ends: an adapter would learn never to stop. Set eos_token in its tokenizer_config.json.",
           clean=TEXT, model=of_tokenizer(eos_token=None, pad_token=None)),
    Defect("Weights that are missing", "model.uri pvc://models/tiny: its files lack lm_head.weight. They would be made "
           "up at random. Save the whole model once more with save_pretrained, unquantized, without the wrapper that "
           "torch.compile or a parallel training puts around it.",
           model=of_weights(lambda weights: {n: weight for n, weight in weights.items() if n != "lm_head.weight"})),
    Defect("Weights of a compiled model", "model.uri pvc://models/tiny: its files lack lm_head.weight, … and it has "
           "_orig_mod.lm_head.weight, …, which the model does not know. They would be made up at random.",
           model=of_weights(lambda weights: {f"_orig_mod.{name}": weight for name, weight in weights.items()})),
    Defect("Weights that are quantized", "model.uri pvc://models/tiny: its weights are quantized (F8_E4M3). Training "
           "needs the unquantized ones.",
           model=of_weights(lambda weights: {n: w.to(torch.float8_e4m3fn) for n, w in weights.items()})),
    Defect("Weights of another shape", "model.uri pvc://models/tiny: … is of the shape [64, 128] in its files, and of "
           "[64, 256] by its config.json. Restore the config.json that belongs to the weights.",
           model=of_tokenizer(config={"intermediate_size": 256})),
    Defect("Weights that are cut off", "model.uri pvc://models/tiny: model.safetensors is no safetensors file, or is "
           "cut off. Restore it.", model=cut_weights),
    Defect("An adapter beside the model", "model.uri pvc://models/tiny is no model that can be trained: an adapter "
           "lies beside the model (adapter_config.json), and transformers would put it on. Remove its files; or merge",
           model=lambda model: (model / "adapter_config.json").write_text("{}")),
    Defect("No end after an answer", "model.uri pvc://models/tiny: its chat template ends the assistant's turn with "
           "<|im_start|>, but serving stops at <|im_end|>: an adapter would learn never to stop.", template=NO_STOP),
    Defect("A generation prompt that would be learnt",
           "model.uri pvc://models/tiny: its chat template has no generation "
           "prompt, so that an answer would begin with '<|im_start|>assistant\\n', and who asks would see that. Add ",
           template=NO_PROMPT),
    Defect("BOS twice", "model.uri pvc://models/tiny: its chat template begins a conversation with <|im_start|> twice, "
           "where the model knows one. Remove the other from the template.", template="<|im_start|>" + CHATML,
           model=of_tokenizer(bos_token="<|im_start|>")),
    Defect("Thoughts that the template leaves out", "{at}: the model's chat template leaves out the reasoning beside "
           "\"messages[1].content\". Leave the row out, or use a chat template that has them",
           row=of_answer(reasoning_content="Hm.")),
    Defect("Thoughts in a text that the template cuts out", "{at}: the model's chat template leaves out what is "
           "thought in \"messages[1].content\". Leave the row out, or use a chat template that has it",
           row=of_answer(content="<think>Hm, let me see.</think>\nYes."),
           template=CHATML.replace("message.content", "message.content.split('</think>')[-1]")),
    Defect("A system turn that the template leaves out", "{at}: the model's chat template leaves out all of "
           "\"messages[0].content\".", row=of_turns(lambda turns: [{"role": "system", "content": "Be brief."}, *turns]),
           template=CHATML.replace("{% for message in messages %}",
                                   "{% for message in messages if message.role != 'system' %}")),
    Defect("Tool calls that the template leaves out",
           "{at}: the model's chat template leaves out the tool_calls beside "
           "\"messages[1].content\". Leave the row out, or use a chat template that has them",
           row=of_answer(tool_calls=[CALL])),
    Defect("Tools that the template leaves out", "{at}: the model's chat template leaves out \"tools\". Leave the row "
           "out, or use a chat template that has them", row=with_fields(tools=clean.TOOLS)),
    Defect("An answer that is cut off whole", "{at}: the assistant's part begins at token … and is cut off at "
           "maxSequenceLength 200. Shorten the row, raise training.maxSequenceLength, or set training.overlongRows: "
           "Split", row=of_question(content="Why? " * 120), training=TOO_LONG),
    Defect("An answer that loses its end", "1 rows are longer than training.maxSequenceLength and lose their ends, "
           "answers among them, such as {at}. Raise it, or set training.overlongRows: Split.", WARNING,
           row=of_answer(content="Because. " * 60), training=TOO_LONG),
    Defect("A row longer than the model's context",
           "1 rows are longer than training.maxSequenceLength and are left out, "
           "such as {at}. Raise it, or set training.overlongRows: Truncate.", WARNING,
           row=of_answer(content="Because. " * 60), training={"overlongRows": "Drop", "maxSequenceLength": 100_000}),
    Defect("lora beside method Full", "lora.rank 8 is not used: method Full trains all weights and has no adapter. "
           "Leave lora out, or set method: LoRA.", WARNING, spec={"method": "Full", "lora": {"rank": 8}}),
)  # fmt: skip

# Rows with each other
BESIDE = (
    Defect("Duplicates",
           "1 rows equal an earlier one, such as datasets/rows.jsonl, line 2001 and {at}. They are learnt "
           "as often as they are there: add {{deduplicate: {{}}}} to dataset.steps if that is not meant.", WARNING,
           rows=twice()),
    Defect("Duplicates across the split", "1 of 50 held-out rows say the same as a training row or nearly, such as "
           "datasets/second.jsonl, line 1 and {at}. The loss on them is better than it is on new rows: add "
           "{{deduplicate: {{near: '0.8'}}}} to dataset.steps.", WARNING, second=held_out(), dataset=HELD_OUT),
    Defect("Near duplicates across the split",
           "1 of 50 held-out rows say the same as a training row or nearly, such as "
           "datasets/second.jsonl, line 1 and {at}. ", WARNING,
           row=of_answer(content=LONG), second=held_out(nearly), dataset=HELD_OUT),
    Defect("Conflicting answers",
           "1 questions have different answers, such as {at} and datasets/rows.jsonl, line 2001. "
           "Keep the right one: the model learns something between them.", WARNING,
           rows=twice(of_answer(content="Nobody knows."))),
    Defect("Preferences mixed with others",
           "datasets/second.jsonl says which answers are preferred, and datasets/rows.jsonl does not: they have "
           "different losses, and can't be mixed. Train on the one in one job, and on the other in another.",
           second=lambda _, __: clean.jsonl(PAIRS.rows()[:50]),
           dataset={"uri": None, "sources": [{"uri": f"pvc://datasets/{name}.jsonl"} for name in ("rows", "second")]}),
    Defect("Few rows", "There are only 5 rows to train on. Add more.", WARNING, rows=lambda rows, _: rows[:6],
           dataset={"validationSplit": "10%"}),
)  # fmt: skip

DEFECTS = (*FILES, *TEXTS, *ROWS, *MODELS, *BESIDE)
