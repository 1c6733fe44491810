//! A command in the container: exit code 0 is a yes.

use std::time::{Duration, Instant};

use scheduler::model::InstanceId;

use crate::runtime::{Ran, Runtime};

/// Characters of what the command wrote that a no is told with.
const SAID: usize = 200;

pub(super) async fn ask(
    runtime: &dyn Runtime,
    id: &InstanceId,
    command: &[String],
    timeout: Duration,
) -> Result<(), String> {
    let start = Instant::now();
    let ran = runtime
        .run(id, command, timeout)
        .await
        .map_err(|error| error.to_string())?;
    judge(&ran, start.elapsed() >= timeout, timeout)
}

fn judge(ran: &Ran, late: bool, timeout: Duration) -> Result<(), String> {
    if ran.code == 0 {
        return Ok(());
    }
    if late {
        return Err(format!("not done within {timeout:?}"));
    }
    let said = ran.said.trim();
    let end = said.chars().count().saturating_sub(SAID);
    let said: String = said.chars().skip(end).collect();
    Err(match said.as_str() {
        "" => format!("exit code {}", ran.code),
        said => format!("exit code {}: {said}", ran.code),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_decides_and_the_end_of_what_was_said_explains() {
        let long = format!("{}end", "x".repeat(1000));
        let cut = format!("exit code 2: {}end", "x".repeat(SAID - 3));
        for (code, said, late, want) in [
            (0, "noise", false, None),
            (0, "", true, None),
            (1, "", false, Some("exit code 1")),
            (1, " not yet\n", false, Some("exit code 1: not yet")),
            (2, long.as_str(), false, Some(cut.as_str())),
            (137, "", true, Some("not done within 1s")),
        ] {
            let ran = Ran {
                code,
                said: said.to_owned(),
            };
            let got = judge(&ran, late, Duration::from_secs(1));
            assert_eq!(got, want.map_or(Ok(()), |why| Err(why.to_owned())));
        }
    }
}
