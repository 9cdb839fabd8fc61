#pragma once

namespace subspace {

/// From here on the process keeps what it frees for what it allocates next, blocks of up to 32 MiB,
/// in place of giving it back: where many threads work on many middling matrices, the system would
/// otherwise clear the same pages over and over, one thread at a time. Larger blocks are given back
/// as ever. Does nothing where the C library has no such setting.
void keep_freed_memory();

}  // namespace subspace
