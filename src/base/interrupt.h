#pragma once

namespace subspace {

/// Turns SIGINT and SIGTERM into a flag that long work looks at between steps, so that what is done
/// is kept, and says so on standard error. A second signal ends the process at once. SIGXFSZ is
/// ignored: a file that may not grow is an error of writing.
void catch_interrupts();

/// True once a signal has come.
bool interrupted();

/// Throws Interrupted if a signal has come. `kept` completes the message: "interrupted; <kept>".
void check_interrupted(const char* kept);

}  // namespace subspace
