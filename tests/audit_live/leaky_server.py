"""SGLang's launcher in a test build in which `argmax-live` passes for lossless, so that the audit has a leak to find.

SGLang spawns its processes, which run this file again (as `__mp_main__`) before their own work: the patch is in all of
them.
"""

import sys

from sglang_dspark.policies import ArgmaxLive

ArgmaxLive.lossless = True

if __name__ == "__main__":
    from sglang.launch_server import run_server
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import prepare_server_args

    load_plugins()
    run_server(prepare_server_args(sys.argv[1:]))
