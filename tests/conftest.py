"""What every test shares: one Hypothesis profile, without deadlines (a loaded machine is no failure), and Ctrl-C."""

import signal
import threading

from hypothesis import settings

settings.register_profile("holdfast", deadline=None, print_blob=True)
settings.load_profile("holdfast")

# Whoever runs the tests in the background has them ignore SIGINT, and so would every program they start and interrupt.
if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
