//! The program.
//!
//! *Guarantees*: exit codes as `cli` says. *Assumes*: nothing. *Fails when*: as `cli` says. *Order*: none.
//! *Not here*: anything else.

/// Pages are allocated by one thread and freed by another, aligned to 4 KiB, up to 1 MiB each: glibc's arenas keep
/// several hundred MiB of that (measured: 658 MiB after 6 GiB of writes), this allocator gives it back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    std::process::ExitCode::from(stablefs::cli::run(std::env::args_os().collect()))
}
