# SPDX-License-Identifier: Apache-2.0
"""Keys that are unknown, missing, of a wrong type, out of range, or not for this stage."""

from __future__ import annotations

from typing import Any

import yaml

from .rows import Row


# A value for each key of LlamaFactory that stage `tpaw` does not go with, and a wrong one for each key of ours.
INCOMPATIBLE: dict[str, Any] = yaml.safe_load("""{
streaming: true, packing: true, neat_packing: true, tokenized_path: data/tokenized, mix_strategy: interleave_under,
mask_history: true, train_on_prompt: true, adapter_folder: adapter, pissa_init: true, use_kt: true, use_unsloth: true,
rope_scaling: dynamic, fp8: true, moe_aux_loss_coef: 0.01, mixture_of_depths: convert, use_mca: true,
use_hyper_parallel: true, use_badam: true, num_beams: 4,
predict_with_generate: true, do_predict: true, eval_on_each_dataset: true, neftune_noise_alpha: 5,
label_smoothing_factor: 0.1, pref_beta: 0.1, pref_loss: sigmoid, pref_ftx: 1.0, dpo_label_smoothing: 0.1,
ref_model: saves/sft}""")
WRONG: dict[str, Any] = yaml.safe_load("""{
tpaw_iteration: one, tpaw_team_size: 0, tpaw_objective: dpo, tpaw_reward_scale: 0.0, tpaw_eta: 0.5, tpaw_gamma: -1,
tpaw_scale: large, tpaw_history_weight: nan, tpaw_max_prompts: 0, tpaw_prompts_seed: -1, tpaw_turn: second,
tpaw_engine: vllmm, tpaw_generate_batch_tokens: 1.5, tpaw_engine_concurrency: 0, tpaw_engine_timeout: 0,
tpaw_engine_retries: -1, tpaw_engine_startup: long, tpaw_max_failed: -1, tpaw_samples_per_prompt: 0,
tpaw_reference: offline, tpaw_score_batch_tokens: 8k, tpaw_grouping: iteration, tpaw_layout: packed,
tpaw_logits: chunks, tpaw_min_response: 0, tpaw_max_bad_rows: -1, tpaw_renyi_alpha: 0, tpaw_guard: loud,
tpaw_opponent_filter: "equal,shorter:0", tpaw_prompt_weight: answers}""")

ROWS = [
    Row("an unknown key of this package", given={"tpaw_gama": 1.0}),
    Row("an unknown key of LlamaFactory", given={"learning_rat": 1.0}),
    Row("an unknown key that is like no other", given={"favourite_colour": "red"}),
    Row("an unknown key on the command line", overrides=("tpaw_etaa=4",)),
    Row("an unknown key with ALLOW_EXTRA_ARGS", given={"tpaw_gama": 1.0, "favourite_colour": "red"},
        environment={"ALLOW_EXTRA_ARGS": "1"}),
    Row("a number of LlamaFactory that is none", overrides=("learning_rate=fast",)),
    Row("a number of LlamaFactory in quotes", given={"num_train_epochs": "2"}),
    Row("a switch of LlamaFactory that is none", given={"plot_loss": "yse"}),
    Row("a word that a key of LlamaFactory does not take", given={"lr_scheduler_type": "linaer"}),
    Row("a batch of nothing", given={"per_device_train_batch_size": 0}),
    Row("a run file with nothing but the stage", run_file="stage: tpaw\ndo_train: true\nfinetuning_type: full\n"),
    Row("an empty value", given={"tpaw_eta": ""}),
    Row("a key that is null and may not be", overrides=("tpaw_eta=null",)),
    *(Row(f"`{key}: {value}`", given={key: value}) for key, value in WRONG.items()),
    Row("several wrong keys at once", iteration=2, given={
        "tpaw_eta": 0.5, "tpaw_gamma": -1, "tpaw_gama": 1.0, "finetuning_type": "oft", "temperature": None,
        "top_k": "many",
    }),
    Row("an adapter in full training, quantized at that", given={
        "adapter_name_or_path": "saves/adapter", "quantization_bit": 4,
    }),
    Row("a `lora_target` that names nothing", generating=True, given={
        "finetuning_type": "lora", "lora_target": "q_projj",
    }),
    Row("a template that does not exist", given={"template": "qwenn"}),
    Row("a template whose tokens the tokenizer lacks", given={"template": "gemma"}),
    Row("no sampling keys", generating=True, given={"temperature": None, "top_p": None, "top_k": None}),
    Row("sampling keys out of range", generating=True, given={
        "temperature": -1.0, "top_p": 2.0, "top_k": "many", "max_new_tokens": 0, "repetition_penalty": 0,
    }),
    Row("an engine without its server", generating=True, given={"tpaw_engine": "openai"}),
    Row("a server without an engine that asks it", given={"tpaw_engine_url": "http://localhost:8000/v1"}),
    Row("a server's address that is none", given={"tpaw_engine": "openai", "tpaw_engine_url": "localhost:8000"}),
    Row("a server's address with a password", given={
        "tpaw_engine": "openai", "tpaw_engine_url": ["http://a/v1", "http://me:geheim@host:8000/v1"],
    }),
    Row("a server's key in the run file", given={"tpaw_engine": "vllm", "tpaw_vllm_args": "--api-key geheim"}),
    Row("what vLLM cannot be told", generating=True, given={
        "tpaw_engine": "vllm", "tpaw_vllm_args": "--dtype half --max-num-seqs 8", "rope_scaling": "yarn",
    }),
    Row("arguments that no shell reads", given={"tpaw_engine": "vllm", "tpaw_vllm_args": "--chat-template 'a"}),
    Row("several samples that would be the same", generating=True, given={
        "tpaw_samples_per_prompt": 2, "temperature": 0,
    }),
    Row("weights of prompts without what they need", generating=True, given={
        "tpaw_prompt_weight": "entropy", "tpaw_objective": "iris",
    }),
    Row("a pattern that is none", given={"tpaw_prompt_weight": "entropy", "tpaw_answer_pattern": "#### ("}),
    Row("neither training nor evaluation", given={"do_train": False}),
    Row("a `val_size` that holds out all prompts", given={"val_size": 16}),
    Row("`deepspeed` without torchrun", given={"deepspeed": {"zero_optimization": {"stage": 2}}, "use_cpu": None}),
    Row("ZeRO-3 whose weights nobody gathers", environment={"FORCE_TORCHRUN": "1"}, given={
        "deepspeed": {"zero_optimization": {"stage": 3}}, "use_cpu": None,
    }),
    Row("a DeepSpeed config that is not there", given={"deepspeed": "ds.json"}, environment={"FORCE_TORCHRUN": "1"}),
    Row("`deepspeed` with `use_cpu`", environment={"FORCE_TORCHRUN": "1"}, given={
        "deepspeed": {"zero_optimization": {"stage": 2}},
    }),
    Row("FSDP on the CPU", given={"fsdp": "full_shard"}, environment={"FORCE_TORCHRUN": "1"}),
    *(Row(f"another trainer, {name}", environment={name: "1"})
      for name in ("USE_MCA", "USE_MEGATRON_BRIDGE", "USE_V1")),
    *(Row(f"`{key}: {value}` of LlamaFactory", given={key: value}) for key, value in INCOMPATIBLE.items()),
]  # fmt: skip
