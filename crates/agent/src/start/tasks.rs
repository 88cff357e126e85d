//! The parts of the agent, and what happens when one of them ends.

use std::collections::HashMap;

use tokio::task::{Id, JoinSet};

use crate::AgentError;

/// The parts of the agent. None of them ends before the agent does: if one does, or panics, the agent must not go on
/// without it as if nothing had happened.
#[derive(Default)]
pub struct Tasks {
    running: JoinSet<Result<(), AgentError>>,
    names: HashMap<Id, &'static str>,
}

impl Tasks {
    /// Starts a part; it is called so in errors.
    pub fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = Result<(), AgentError>> + Send + 'static,
    ) -> Id {
        let id = self.running.spawn(task).id();
        self.names.insert(id, name);
        id
    }

    /// Waits for the first part that ends, and says why.
    pub async fn first_end(&mut self) -> AgentError {
        let Some(ended) = self.running.join_next_with_id().await else {
            return std::future::pending().await;
        };
        let (id, why) = match ended {
            Ok((_, Err(error))) => return error,
            Ok((id, Ok(()))) => (id, "it ended".to_string()),
            Err(error) => (error.id(), error.to_string()),
        };
        let task = self.names.get(&id).copied().unwrap_or("a task");
        tracing::error!(task, why, "a part of the agent failed");
        AgentError::Ended { task, why }
    }

    /// Waits for the end of one part.
    pub async fn end_of(&mut self, part: Id) {
        while let Some(ended) = self.running.join_next_with_id().await {
            if ended.map_or_else(|error| error.id(), |(id, _)| id) == part {
                return;
            }
        }
    }
}

/// A part that can only end.
pub async fn never_fails(task: impl Future<Output = ()>) -> Result<(), AgentError> {
    task.await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(task: impl Future<Output = Result<(), AgentError>> + Send + 'static, expected: &str) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        let got = runtime.block_on(async {
            let mut tasks = Tasks::default();
            tasks.spawn("the quiet one", std::future::pending());
            tasks.spawn("the loop", task);
            tasks.first_end().await
        });
        assert!(got.to_string().starts_with(expected), "{got}");
    }

    #[test]
    fn a_part_that_ends_or_panics_ends_the_agent_with_its_name() {
        check(async { Ok(()) }, "the loop failed: it ended");
        check(async { panic!("out of luck") }, "the loop failed: task ");
        check(async { Err(AgentError::Connect("no".into())) }, "datastore: no");
    }
}
