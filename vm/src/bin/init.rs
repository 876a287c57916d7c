//! Process 1 of the guests, and the worker that it starts.
#![forbid(unsafe_code)]

use sentry_vm::{guest, plan::FAILED};
use std::process::ExitCode;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        guest::init();
        return ExitCode::SUCCESS;
    }
    match guest::work() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("\n{FAILED} {error:#}");
            ExitCode::FAILURE
        }
    }
}
