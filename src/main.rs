//! The program.

fn main() -> std::process::ExitCode {
    std::process::ExitCode::from(stablefs::cli::run(std::env::args_os().collect()))
}
