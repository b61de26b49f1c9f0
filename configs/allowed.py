"""What each knob of each recipe may be, section by section, under the names that the recipes have.

experiments/knobs.py checks them at the door of every entry point. A new knob gets its rule here.
"""

from configs.rules import (
  BUDGETS,
  COUNT,
  DECAY,
  DIFFERENT_BUDGETS,
  DTYPE,
  EXPLORING,
  FILES,
  FLAG,
  INSIDE,
  KIND,
  LANES,
  NAME,
  NAMES,
  PART,
  PIXELS,
  POSITIVE,
  PROCESSES,
  PROSE,
  QUANTITY,
  RETRIES,
  SEED,
  SHARE,
  SOURCE,
  TEMPERATURE,
  TEXT,
  TOP_P,
  URL,
  URLS,
  WORDS,
  Rule,
  above,
  each,
  either,
  from_,
  multiple_of,
  one_of,
  optional,
  some_of,
  span,
  whole,
)

RUN = {
  'folder': TEXT,
  'checkpoint_every': whole(0, note='0: only the last record'),
  'keep': COUNT,
  'tensorboard': FLAG,
  'wandb_project': TEXT,
  'wandb_entity': TEXT,
  'wandb_mode': one_of('online', 'offline', 'disabled', 'shared'),
}
ROWS = {
  'kind': KIND,
  'train': FILES,
  'media_root': TEXT,
  'skip_bad_rows': FLAG,
  'max_bad_share': SHARE,
}
VIDEO = {
  'min_pixels': whole(0, note='0: no lower bound'),
  'max_pixels': PIXELS,
  'backend': one_of('pyav', 'decord'),
  'workers': PROCESSES,
  'deadline_s': POSITIVE,
  'cache_mb': whole(0, note='0: none in memory'),
  'cache_folder': TEXT,
}
SAMPLING = {
  'top_p': TOP_P,
  'top_k': Rule(
    'at least 1, or -1 for all', lambda value: type(value) is int and (value >= 1 or value == -1)
  ),
  'context': COUNT,
}
AGENT = {
  'think_prefix': PROSE,
  'max_turns': whole(0),
  'max_parallel': COUNT,
  'max_new_tokens': COUNT,
}
SUBAGENT = {
  'rate': POSITIVE,
  'min_frames': COUNT,
  'max_frames': COUNT,
  'see_question': FLAG,
  'max_new_tokens': COUNT,
  'summary_tokens': COUNT,
  'deadline_s': POSITIVE,
}
REWARD = {
  'format_weight': from_(0),
  'anchor_weight': from_(0),
  'unclosed_penalty': from_(0),
  'answer_suffix': FLAG,
  'tool': FLAG,
  'tool_threshold': SHARE,
  'tool_bonus': one_of('call', 'executed'),
  'open_ended': one_of('f1', 'exact', 'judge'),
  'grounding_threshold': optional(PART),
}
JUDGE = {
  'url': URL,
  'model': TEXT,
  'api_key': TEXT,
  'more': PROSE,
  'max_tokens': COUNT,
  'timeout_s': POSITIVE,
  'retries': RETRIES,
  'backoff_s': POSITIVE,
  'concurrency': COUNT,
}
OPTIMIZER = {
  'name': one_of('adam', 'adamw', 'muon'),
  'schedule': one_of('constant', 'cosine'),
  'warmup_steps': whole(0),
  'total_steps': COUNT,
  'final_scale': SHARE,
  'weight_decay': from_(0),
  'beta1': DECAY,
  'beta2': DECAY,
  'epsilon': POSITIVE,
  'momentum': DECAY,
  'clip_norm': from_(0, '0: no clipping'),
}
TRAIN = {
  'dtype': DTYPE,
  'remat': FLAG,
  'backend': one_of('chunked', 'xla'),
  'head_chunk': COUNT,
  'freeze_vision': FLAG,
  'row_tokens': COUNT,
  'image_patches': multiple_of(4),
  'rows': COUNT,
  'micro_batches': COUNT,
}
MESH = {'data': COUNT, 'fsdp': COUNT, 'tensor': COUNT}
EMBEDDED = {
  'threads': whole(0, note='0: as many as it likes'),
  'dtype': DTYPE,
  'lanes': LANES,
  **dict.fromkeys(
    ('chunk_tokens', 'prefill_rows', 'pages', 'decode_steps', 'image_batch', 'image_slots'), COUNT
  ),
  **dict.fromkeys(('bias_rows', 'max_stop_ids', 'max_body_mb'), COUNT),
  'max_image_patches': TRAIN['image_patches'],
}
SGLANG = {
  'python': NAME,
  'device': one_of('cpu', 'cuda'),
  'dtype': DTYPE,
  'max_total_tokens': COUNT,
  'max_running_requests': COUNT,
  'mem_fraction': INSIDE,
  'threads': COUNT,
  'tensor_parallel': COUNT,
  'devices': each(
    'different numbers of GPUs, or ()', lambda one: type(one) is int and one >= 0, differ=True
  ),
  'vision_cache_mb': whole(0, note='0: none'),
  'staging': TEXT,
  'extra': WORDS,
}
WATCH = {
  'every_s': POSITIVE,
  'misses': COUNT,
  'restarts': whole(0),
  'memory_mb': whole(0, note='0: no limit'),
  'drain_s': from_(0),
  'tolerance': POSITIVE,
}
SERVER = {
  'kind': one_of('url', 'embedded', 'sglang'),
  'urls': URLS,
  'count': PROCESSES,
  'host': NAME,
  'ports': each(
    'different ports, each in 1..65535',
    lambda one: type(one) is int and 0 < one < 65536,
    differ=True,
  ),
  'api_key': TEXT,
  'ready_timeout_s': POSITIVE,
  'watch': WATCH,
  'embedded': EMBEDDED,
  'sglang': SGLANG,
}
CLIENT = {
  'connections': COUNT,
  'timeout_s': POSITIVE,
  'ready_timeout_s': POSITIVE,
  'retries': RETRIES,
  'backoff_s': POSITIVE,
  'image_cache': whole(0, note='0: none is kept'),
}
CHAT_SERVER = {
  'url': URL,
  'model': TEXT,
  'api_key': TEXT,
  'timeout_s': POSITIVE,
  'retries': RETRIES,
  'backoff_s': POSITIVE,
  'max_backoff_s': POSITIVE,
  'concurrency': COUNT,
  'max_reply_bytes': COUNT,
  'max_failures': COUNT,
}
WORLD = {
  'seed': SEED,
  'workers': Rule('at least 0, at most 1024 (0: in this process)', whole(0, 1024).holds),
  'scene': {
    'seconds': COUNT,
    'fps': COUNT,
    'pixels': multiple_of(32),
    'events': span(1),
    'event_seconds': span(1),
    'gap': whole(0),
    'margin': whole(0),
    'colours': COUNT,
    'shapes': FLAG,
    'noise': from_(0),
  },
  'questions': {
    'weights.*': from_(0),
    'nothing': DECAY,
    'clearance': whole(0),
    'choices': whole(2),
  },
  'traces': {
    'tolerance': whole(0),
    'always_call': SHARE,
    'reach': COUNT,
    'grounding_reach': COUNT,
    'recovery': SHARE,
    'walk_options': FLAG,
  },
  'corpus': {
    'videos': COUNT,
    'heldout_videos': whole(0),
    'rl_tasks': whole(0),
    'heldout_tasks': whole(0),
    'sft_rows.*': whole(0),
    'budgets': BUDGETS,
    'loose': SHARE,
    'stray': SHARE,
    'asked': COUNT,
    'videos_per_archive': COUNT,
  },
}
ABOUT = {'name': NAME, 'scale': NAME, 'seed': SEED}
MODEL = {'folder': TEXT}

SFT = {
  **ABOUT,
  'run': RUN,
  'model': MODEL,
  'data': {**ROWS, 'manifest': TEXT, 'cache_folder': TEXT},
  'frames': {
    'rate': POSITIVE,
    'min_frames': COUNT,
    'max_frames': COUNT,
    'image_max_pixels': PIXELS,
    'think_prefix': PROSE,
  },
  'sources.*': SOURCE,
  'video': {**VIDEO, 'cache_gb': whole(0, note='0: no bound')},
  'steps': COUNT,
  'optimizer': {**OPTIMIZER, 'learning_rate': POSITIVE, 'matrix_learning_rate': POSITIVE},
  'train': {**TRAIN, 'row_images': whole(0), 'row_stills': whole(0), 'still_patches': whole(0)},
  'batches': {'lookahead': COUNT, 'refill': FLAG, 'prefetch': COUNT},
  'mesh': MESH,
  'world': WORLD,
}
RL = {
  **ABOUT,
  'run': RUN,
  'model': MODEL,
  'data': {
    **ROWS,
    'eval': FILES,
    'question_types': some_of('mcq', 'tvg', 'oe'),
    'sources': NAMES,
    'max_rows': whole(0, note='0: all rows'),
  },
  'video': VIDEO,
  'frames': {'gating': FLAG, 'budgets': BUDGETS, 'frames': COUNT},
  'sampling': {**SAMPLING, 'temperature': EXPLORING},
  'agent': AGENT,
  'subagent': SUBAGENT,
  'reward': REWARD,
  'judge': JUDGE,
  'rollout': {
    'steps': COUNT,
    'prompts': COUNT,
    'group_size': whole(2, note='a group of one has no advantage'),
    'staleness': whole(0),
    'max_concurrent': COUNT,
    'subagent_credit': one_of('episode', 'off'),
    'gap_limit': POSITIVE,
  },
  'rl': {
    'clip': INSIDE,
    'weight_cap': above(1),
    'beta': from_(0, '0: no reference'),
    'kl_limit': POSITIVE,
    'batch_norm': one_of('std', 'mean_std', 'none'),
    'updates_per_batch': COUNT,
  },
  'optimizer': {
    **OPTIMIZER,
    'learning_rate': from_(0, '0: nothing changes'),
    'matrix_learning_rate': from_(0),
  },
  'train': {**TRAIN, 'row_images': COUNT},
  'mesh': MESH,
  'server': SERVER,
  'publish': {'dtype': DTYPE, 'keep': COUNT, 'canary_tokens': COUNT},
  'client': CLIENT,
  'eval': {
    'questions': whole(0, note='0: no evaluation'),
    'budgets': BUDGETS,
    'concurrent': COUNT,
    'grounding_threshold': PART,
    'bootstrap': COUNT,
  },
  'cold_start': SFT,
  'world': WORLD,
}
GREEDY = {**SAMPLING, 'temperature': TEMPERATURE}
EVAL = {
  **ABOUT,
  'video': VIDEO,
  'sampling': GREEDY,
  'agent': AGENT,
  'subagent': SUBAGENT,
  'reward': REWARD,
  'server': SERVER,
  'client': CLIENT,
  'benchmarks': PROSE,
  'model': {'folder': TEXT, 'run': TEXT, 'url': URL, 'name': TEXT, 'tokenizer': TEXT},
  'run': {'folder': TEXT},
  'shard': PROSE,
  'data': {'root': TEXT, 'cache': NAME},
  'paths.*': TEXT,
  'protocol': {'name': PROSE, 'dispatch': one_of('parallel', 'sequential'), 'prompt_file': TEXT},
  'eval': {
    'budgets': DIFFERENT_BUDGETS,
    'world_budgets': DIFFERENT_BUDGETS,
    'world_questions': COUNT,
    'limit': whole(0, note='0: all'),
    'concurrent': COUNT,
    'max_error_rate': SHARE,
    'skip_missing_videos': FLAG,
    'canary_tokens': whole(0, note='0: servers are believed'),
    'grounding_threshold': PART,
    'bootstrap': COUNT,
    'report_right': FLAG,
    'report_samples': whole(0),
    'report_pictures': whole(0),
  },
  'chat': {'quality': Rule('0 (PNG) to 95', whole(0, 95).holds), 'prefill': FLAG, 'more': PROSE},
  'chat_server': CHAT_SERVER,
  'train': {'freeze_vision': FLAG},
  'world': WORLD,
}
ASK = {
  **ABOUT,
  'video': PROSE,
  'question': PROSE,
  'question_type': one_of('mcq', 'tvg', 'oe'),
  'html': TEXT,
  'frames': COUNT,
  'model': MODEL,
  'folder': NAME,
  'decode': VIDEO,
  'sampling': GREEDY,
  'agent': AGENT,
  'subagent': SUBAGENT,
  'server': SERVER,
  'client': CLIENT,
}
ABLATE = {
  'recipe': NAME,
  'folder': NAME,
  'sets': PROSE,
  'seeds': each(
    'one or more different seeds, as in --config.seeds=0,1,2', SEED.holds, 1, differ=True
  ),
  'jobs': PROCESSES,
  'cores': each(
    'different cores, or () for all', lambda one: type(one) is int and one >= 0, differ=True
  ),
  'common': WORDS,
  'overrides.*': WORDS,
  'reference': PROSE,
  'drawings.*': WORDS,
}
MIX = {'frames': span(1), 'text': span(1), 'image_share': SHARE}
ROUND = {'frames': COUNT, 'words': COUNT, 'new_tokens': COUNT}
BENCH = {
  'suite': NAME,
  'seed': SEED,
  'threads': COUNT,
  'model': MODEL,
  'run': {'folder': NAME},
  'generate': {
    **ROUND,
    'batch': COUNT,
    'group': COUNT,
    'temperature': TEMPERATURE,
    'repeats': COUNT,
    'lanes': EMBEDDED['lanes'],
    'decode_steps': COUNT,
  },
  'serve': {
    **ROUND,
    'concurrencies': each(
      'positive numbers of requests', lambda one: type(one) is int and one >= 1, 1, differ=True
    ),
    'turns': COUNT,
    'group': COUNT,
    'temperature': TEMPERATURE,
  },
  'prefix': {**ROUND, 'rollouts': COUNT},
  'publish': {'bytes': COUNT},
  'server': {'ready_timeout_s': POSITIVE, 'embedded': EMBEDDED, 'sglang': SGLANG},
  'data': {
    'mix': {**MIX, 'image_tokens': span(1), 'images': COUNT},
    'packing': {'rows': COUNT, 'batches': COUNT},
    'clip': {
      **dict.fromkeys(('seconds', 'fps', 'gop'), COUNT),
      'height': multiple_of(2),
      'width': multiple_of(2),
      'grain': whole(1, 255),
    },
    'decode': {
      **dict.fromkeys(
        ('overviews', 'overview_frames', 'windows', 'window_frames', 'repeats'), COUNT
      ),
      'window_seconds': POSITIVE,
    },
    'unpack': {'bytes': COUNT, 'archives': whole(2, note='one of each kind'), 'repeats': COUNT},
    'materialize': {**MIX, 'rows': COUNT},
    'step': {'parameters': QUANTITY, 'peak_flops': QUANTITY, 'share': PART},
    'input': {'rows': COUNT, 'steps': COUNT, 'stage_rows': COUNT},
    'sft': SFT,
  },
}
CUT = {
  'workers': PROCESSES,
  'clip_seconds': POSITIVE,
  'snap_seconds': from_(0),
  'min_seconds': from_(0),
  'max_fps': POSITIVE,
  'crf': whole(0, 51),
  'deadline_s': POSITIVE,
}
LONGVIDEO_REASON = {
  'seed': SEED,
  'videos': PROSE,
  'output': NAME,
  'media_root': TEXT,
  'steps': PROSE,
  'split': CUT,
  'caption': {
    'prompt': PROSE,
    'send': either('frames', 'video'),
    'frames': COUNT,
    'min_pixels': VIDEO['min_pixels'],
    'max_pixels': PIXELS,
    'quality': whole(1, 95),
    'max_tokens': COUNT,
    'temperature': TEMPERATURE,
    'min_chars': whole(0),
  },
  'ask': {'prompt': PROSE, 'max_tokens': COUNT, 'temperature': TEMPERATURE, 'max_missing': SHARE},
  'rewrite': {'prompt': PROSE, 'max_tokens': COUNT, 'temperature': TEMPERATURE, 'min_chars': whole(0)},
  'trace': {'calls': FLAG, 'max_parallel': COUNT, 'max_rounds': COUNT},
  'vision': CHAT_SERVER,
  'reasoner': CHAT_SERVER,
  'video': {name: VIDEO[name] for name in ('workers', 'deadline_s', 'backend')},
}
