"""
GPT-2's files: in the format of Hugging Face's transformers, read and written, and in llama.cpp's, written.

A folder holds config.json, model.safetensors and, for other programs, the tokenizer's files. This file knows names and
shapes, and no classes of ours: a model's sizes are a dict with the keys of a checkpoint's `model_args`, its weights a
dict of tensors with the names of GPT's parameters in model.py.
"""

import contextlib
import json
import os
import shutil

import torch

from configurator import UserError, first_line, hub_folder, read_json, replacing

PRETRAINED = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
ACTIVATIONS = {"erf": "gelu", "tanh": "gelu_new"}  # our names of the two GELUs, and theirs
MASKS = (".attn.bias", ".attn.masked_bias")  # the causal mask, which older programs keep among the weights
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # stored as (in, out); nn.Linear has (out, in)
FIXED = {  # settings that a config.json may only have with these values, which are also their defaults
    "model_type": "gpt2",
    "n_inner": None,
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_word_embeddings": True,
}
UNUSED = {  # what OpenAI's own config.json has beyond what a language model needs: some programs look for it
    "initializer_range": 0.02,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
}

# -----------------------------------------------------------------------------
# finding


def find_pretrained(name):
    """The folder of a GPT-2: `name` itself, or for a name in PRETRAINED the hub's, fetched once. Raises OSError."""
    if name not in PRETRAINED or os.path.exists(os.path.join(name, "config.json")):
        return name
    # older programs cached it under the bare name
    return hub_folder([f"openai-community/{name}", name], ["config.json", "model.safetensors"], name)


# -----------------------------------------------------------------------------
# reading


def read_sizes(folder):
    """The sizes in a folder's config.json. Raises OSError without one, ValueError where it is no GPT-2 of our kind."""
    path = os.path.join(folder, "config.json")
    found = {"activation_function": ACTIVATIONS["tanh"], **FIXED, **read_json(path)}
    sizes = {name: found.get(name) for name in ("n_positions", "vocab_size", "n_layer", "n_head", "n_embd")}
    for name, size in sizes.items():
        if type(size) is not int or not 0 < size < 2**20:
            raise ValueError(f"{path!r} has {name}={size!r:.40}, which is no size of a GPT-2")
    supported = {name: [value] for name, value in FIXED.items()}
    supported |= {"n_inner": [None, 4 * sizes["n_embd"]], "activation_function": list(ACTIVATIONS.values())}
    for name, values in supported.items():
        if found[name] not in values:
            raise ValueError(
                f"{path!r} has {name}={found[name]!r:.40}, and only {' or '.join(map(repr, values))} is supported"
            )
    gelu = next(ours for ours, theirs in ACTIVATIONS.items() if theirs == found["activation_function"])
    # <|endoftext|> is the last id, as GPT-2's, unless it is nowhere near the last row
    end = found.get("eos_token_id")
    n_ids = end + 1 if type(end) is int and 0 < sizes["vocab_size"] - end <= 64 else None
    return {"block_size": sizes.pop("n_positions"), **sizes, "bias": True, "gelu": gelu, "n_ids": n_ids}


def find_tensors(folder, n_layer):
    """Where a folder's weights are: {our name: (file, their name)}. Raises OSError or ValueError."""
    places = {}
    for path in safetensors_in(folder):
        with open_safetensors(path) as f:
            for key in f.keys():
                name = key if key == "lm_head.weight" else "transformer." + key.removeprefix("transformer.")
                if not name.endswith(MASKS):
                    places[name] = path, key
    found = sum(name.endswith(".ln_1.weight") for name in places)
    if found != n_layer:
        raise ValueError(f"{folder!r} has the weights of n_layer={found}, and its config.json says n_layer={n_layer}")
    return places


def safetensors_in(folder):
    """The files with a folder's weights: one, or several that an index names. Raises OSError or ValueError."""
    path = os.path.join(folder, "model.safetensors")
    index = f"{path}.index.json"
    if os.path.exists(path):
        return [path]
    if os.path.exists(index):
        files = read_json(index).get("weight_map")
        if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
            raise ValueError(f"{index!r} has no weight_map, from tensors to files")
        return [os.path.join(folder, os.path.basename(file)) for file in sorted(set(files.values()))]
    if os.path.exists(os.path.join(folder, "pytorch_model.bin")):
        raise OSError(
            f"{folder!r} has only pytorch_model.bin, a pickle, which could run any program and is not read: loading "
            "and saving it with transformers makes a model.safetensors of it"
        )
    raise OSError(f"{folder!r} has no model.safetensors")


def read_tensors(places, shapes):
    """
    The weights at `places`, by our names, as float32. `shapes` are those of the model that is to hold them. Raises
    ValueError where others are there.
    """
    wte, head = "transformer.wte.weight", "lm_head.weight"
    wanted = {name: shape for name, shape in shapes.items() if name != head or head in places}
    if others := wanted.keys() ^ places.keys():
        raise ValueError(f"the weights {'lack' if min(others) in wanted else 'have an unknown'} {min(others)}")
    weights = {}
    for name, shape in wanted.items():
        path, key = places[name]
        with open_safetensors(path) as f:
            tensor = f.get_tensor(key)
        if name.endswith(TRANSPOSED) and tensor.dim() == 2:
            tensor = tensor.T
        if tensor.shape != shape or not tensor.is_floating_point():
            given = f"{tensor.dtype} {tuple(tensor.shape)}"
            raise ValueError(f"{path!r} has {key} as {given}, and config.json asks for floats {tuple(shape)}")
        weights[name] = torch.empty(shape).copy_(tensor)
    if not torch.equal(weights.setdefault(head, weights[wte]), weights[wte]):
        raise ValueError("the weights have a lm_head of their own, and only one tied to wte is supported")
    return weights


@contextlib.contextmanager
def open_safetensors(path):
    """Open a file of tensors, to read them one at a time. Raises OSError, or ValueError if it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as f:
            yield f
    except SafetensorError as failure:
        raise ValueError(f"{path!r} is damaged ({failure})") from None


# -----------------------------------------------------------------------------
# writing


def write_pretrained(folder, sizes, weights, more, end_of_text):
    """
    Write a folder that transformers and `find_pretrained` read. It appears once all of it is written.

    `sizes` and `weights` are as above, `more` is the content of further files by name, a dict for JSON or a text: the
    tokenizer's, and README.md. `end_of_text` is the last token id: those beyond it only pad the vocabulary. Raises
    UserError.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # GPT-2 has no token for padding: a batch is padded with its only special one, which attention then leaves out
    special = {f"{name}_token_id": end_of_text for name in ("bos", "eos", "pad")}
    padding = list(range(end_of_text + 1, sizes["vocab_size"]))
    files = {
        "config.json": config_json(sizes) | special,
        "generation_config.json": special | ({"suppress_tokens": padding} if padding else {}),  # never drawn
        **more,
    }
    temporary = f"{folder}.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # of an export that was killed
        os.makedirs(temporary)
        for name, content in files.items():
            with open(os.path.join(temporary, name), "w", encoding="utf-8") as f:
                f.write(content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False))
        save_file(gpt2_tensors(weights), os.path.join(temporary, "model.safetensors"), metadata={"format": "pt"})
        for name in os.listdir(temporary):
            shutil.copymode(os.path.join(temporary, "config.json"), os.path.join(temporary, name))  # not 0600
            with open(os.path.join(temporary, name), "rb+") as f:
                os.fsync(f.fileno())
        if os.path.exists(folder):  # and is empty
            os.rmdir(folder)
        os.rename(temporary, folder)
    except (OSError, SafetensorError) as failure:
        raise UserError(f"cannot write {folder!r}: {first_line(failure)}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def config_json(sizes):
    """What config.json says of a model of these sizes."""
    dropout = {name: sizes["dropout"] for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop")}
    return {
        **FIXED,
        **UNUSED,
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": ACTIVATIONS[sizes.get("gelu", "erf")],
        "n_positions": sizes["block_size"],
        "n_ctx": sizes["block_size"],  # the same by its older name, which llama.cpp's converter reads
        **{name: sizes[name] for name in ("vocab_size", "n_layer", "n_head", "n_embd")},
        **dropout,
        # a pipeline of older versions of transformers, told nothing else, draws as many tokens as GPT-2's does
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": min(50, sizes["block_size"])}},
    }


def gpt2_tensors(weights):
    """The weights by GPT2LMHeadModel's names, in its shapes, and with its biases."""
    weights = with_biases(weights)
    return {name: w.T.contiguous() if name.endswith(TRANSPOSED) else w for name, w in weights.items()}


def with_biases(weights):
    """The weights as any program for GPT-2 wants them: with zeros for biases that there are not, and one wte."""
    tensors = {}
    for name, tensor in weights.items():
        if name == "lm_head.weight":  # tied to wte
            continue
        tensors[name] = tensor
        bias = name.removesuffix("weight") + "bias"
        if name.endswith("weight") and "wte" not in name and "wpe" not in name and bias not in weights:
            tensors[bias] = tensor.new_zeros(len(tensor))
    return tensors


# -----------------------------------------------------------------------------
# writing for llama.cpp


def write_gguf(path, sizes, weights, tokens, merges):
    """
    Write a GGUF file, which appears once it is whole. Its name becomes the model's.

    `sizes` and `weights` are as above, in float32 or float16. `tokens` are the strings of all token ids, the last one
    that which ends a text, and `merges` pairs of them. Raises UserError.
    """
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, sizes["n_layer"])  # from transformers' names
    with replacing(path) as f, contextlib.closing(gguf.GGUFWriter(f.name, "gpt2")) as writer:
        writer.add_name(os.path.splitext(os.path.basename(path))[0])
        add_sizes(writer, sizes, narrow=weights["transformer.wte.weight"].dtype == torch.float16)
        add_byte_pairs(writer, tokens, merges)
        for name, tensor in with_biases(weights).items():
            tensor = tensor[: len(tokens)] if "wte" in name else tensor  # without the vocabulary's padding
            if tensor.dim() == 1 or "wpe" in name:  # what is added, or scales, is float32 in each such file
                tensor = tensor.float()
            writer.add_tensor(names.get_name(name, (".weight", ".bias")), tensor.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        try:
            writer.write_tensors_to_file()
        except OSError as failure:  # numpy, which writes them, gives no reason
            raise OSError(failure.errno, failure.strerror or "the disk took only a part: is it full?") from None


def add_sizes(writer, sizes, narrow):
    """Write a model's sizes to a GGUF file, and whether its matrices are float16."""
    import gguf

    writer.add_context_length(sizes["block_size"])
    writer.add_embedding_length(sizes["n_embd"])
    writer.add_feed_forward_length(4 * sizes["n_embd"])
    writer.add_block_count(sizes["n_layer"])
    writer.add_head_count(sizes["n_head"])
    writer.add_layer_norm_eps(FIXED["layer_norm_epsilon"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if narrow else gguf.LlamaFileType.ALL_F32)


def add_byte_pairs(writer, tokens, merges):
    """Write byte pairs to a GGUF file, as GPT-2 splits texts."""
    import gguf

    end = len(tokens) - 1
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * end + [gguf.TokenType.CONTROL])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_add_bos_token(False)
