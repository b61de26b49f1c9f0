"""Evaluation of a checkpoint, offline: one recipe for all benchmarks, the synthetic world among
them.

python -m experiments.eval --config=configs/eval.py --config.model=DIR                            # the world, embedded server
python -m experiments.eval --config=configs/eval.py:8b --config.model=DIR --config.benchmarks=videomme,charades \\
  --config.data.root=DIR --config.server.kind=sglang
python -m experiments.eval --config=configs/eval.py:8b --config.model.url=http://HOST:PORT/v1 --config.model.name=NAME \\
  --config.model.tokenizer=DIR --config.benchmarks=mlvu
python -m experiments.eval --compare RESULTS RESULTS          python -m experiments.eval --merge RESULTS RESULTS ...

Where the files of a benchmark are expected: `paths.<name>`, by default `data.root`/<name on the
hub> (or, of Video-MME, LVBench, MMVU and charades_sta, its newer name, lmms-eval/...; or as a hub
cache calls it, datasets--owner--name), as a download of the whole repository lays them out (rows as
parquet, json or jsonl; videos extracted, or in their zip and tar archives; `subtitle/` or
subtitle.zip). Nothing is fetched. What is missing is said in one message, before anything is
started.

  videomme, videomme_wsub   lmms-lab/Video-MME                 videomme/*.parquet, videos_chunked_*.zip, subtitle.zip
  longvideobench            longvideobench/LongVideoBench      validation-*.parquet or lvb_val.json, videos.tar.part.*
  lvbench                   lmms-lab/LVBench                   data/train-*.parquet, video_chunks/videos_chunk_*.zip
  mlvu                      sy1998/MLVU_dev                    mlvu/test-*.parquet, video_part_*.zip
  mmvu                      yale-nlp/MMVU                      validation.json, videos/<subject>/<number>.mp4
  charades                  lmms-lab/charades_sta              data/test-*.parquet, Charades_v1_480_part_*.zip
  longvideo_reason          LongVideo-Reason/longvideo-reason  data/test-*.parquet; beside them, or in a folder there, the
                            videos of another repository: longvideo_eval_subset*.tar.gz of
                            LongVideo-Reason/longvideo_eval_videos
  world                     (made by this project)             nothing: it is written where it is not there
"""

from ml_collections import ConfigDict

from configs import base

BENCHMARKS = (
  'videomme',
  'videomme_wsub',
  'longvideobench',
  'lvbench',
  'mlvu',
  'mmvu',
  'charades',
  'longvideo_reason',
)
# as the model is trained
SHARED = (
  'seed',
  'video',
  'sampling',
  'agent',
  'subagent',
  'reward',
  'server',
  'client',
  'hosts',
)


def get_config(scale: str = 'tiny') -> ConfigDict:
  """The recipe at `scale`: the agent is that of the RL recipe, decoding is greedy. Locked."""
  trained = base.rl('8b' if scale == '2b' else scale)  # no learner shares the device here
  config = ConfigDict({name: trained[name] for name in SHARED})
  config.update(
    {
      'name': 'eval',
      'scale': scale,
      # separated by commas: the names above, world
      'benchmarks': 'world',
      # one of three: a Hugging Face folder (--config.model=DIR says the same), a run folder of
      # experiments.rl or experiments.sft, or the address (up to and without /chat/completions) of a
      # server that speaks the OpenAI protocol, its name of the model, and a folder that holds the
      # tokenizer
      'model': {'folder': '', 'run': '', 'url': '', 'name': '', 'tokenizer': ''},
      # folder '' means runs/eval_<model>_<fingerprint>
      'run': {'folder': ''},
      'shard': '',  # '3/16': the third of sixteen parts, by videos; join them with --merge
      # root: above the snapshots. cache: for what is unpacked from their archives
      'data': {'root': 'data', 'cache': 'runs/benchmarks'},
      'paths': dict.fromkeys(BENCHMARKS, ''),
      # name: tools (as trained), raw_crops, no_tools, direct, think, or another agent's. dispatch:
      # parallel or sequential. prompt_file: of the protocols of other agents
      'protocol': {'name': 'tools', 'dispatch': 'parallel', 'prompt_file': ''},
      # budgets: K of each benchmark; the world has its own, and takes the first world_questions
      # held-out tasks. limit: samples of each benchmark, 0 for all. concurrent: samples in flight.
      # max_error_rate: above it, the command ends with status 1. skip_missing_videos: do without
      # some videos of a benchmark, whose questions are errors then. Of the page: report_right, it
      # shows right answers too; report_samples, report_pictures, at most so many on it (the rest is
      # in results.jsonl)
      'eval': {
        'budgets': (64,),
        'world_budgets': (4, 8, 16, 32, 64),
        'world_questions': 300,
        'limit': 0,
        'concurrent': 64,
        'max_error_rate': 0.01,
        'skip_missing_videos': False,
        # servers by server.urls must say so many tokens as the model folder would, foretold on this
        # CPU; 0: they are believed
        'canary_tokens': 8,
        'grounding_threshold': 0.5,  # of the world's tvg questions, as in training's evaluation
        'bootstrap': 2000,
        'report_right': False,
        'report_samples': 600,
        'report_pictures': 3000,
      },
      **_by_url(),
      # the weights stay as they are: a server may keep what it computed of a frame
      'train': {'freeze_vision': True},
      'world': base.world(),
    }
  )
  config.sampling.temperature = 0.0
  # to the tiny tokenizer the text of benchmarks is bytes; what fits the lanes of training goes there
  # as before
  if scale == 'tiny':
    config.sampling.context = 4096
    config.server.embedded.lanes = (*config.server.embedded.lanes, (4096, 8))
  return config.lock()


def _by_url() -> dict[str, dict]:
  """Sections of a server by model.url."""
  return {
    # of a server by model.url: quality of the JPEGs that frames are sent as (0: PNG); prefill: it
    # can continue from a turn's pinned beginning; more: further fields of a request, a JSON object
    'chat': {'quality': 0, 'prefill': True, 'more': ''},
    'chat_server': {
      'api_key': '',
      'timeout_s': 600.0,
      'retries': 5,
      'backoff_s': 1.0,
      'max_backoff_s': 60.0,
      'concurrency': 64,
      'max_reply_bytes': 4_000_000,
      # requests in a row that failed after all retries: the run ends, and the same command goes
      # on
      'max_failures': 20,
    },
  }
