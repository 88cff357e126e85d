//! Several writes: the API server takes them one by one, so those that do not depend on each other go at the same time.

use std::collections::{BTreeSet, VecDeque};

use datastore::{Store, StoreError, Stored, Write};
use futures::StreamExt;
use futures::stream;

use super::KubernetesStore;

/// How many writes are under way at once.
const AT_ONCE: usize = 16;

impl KubernetesStore {
    /// [`Store::write_all`].
    pub(super) async fn write_in_runs(&self, writes: Vec<Write>) -> Vec<Result<Stored, StoreError>> {
        let mut answers = Vec::with_capacity(writes.len());
        for run in runs(writes) {
            let written = run.into_iter().map(|write| self.write_one(write));
            let mut written = stream::iter(written).buffered(AT_ONCE);
            let mut failed = false;
            // To its end also after a failure: what is under way must not be given up half way.
            while let Some(answer) = written.next().await {
                let counts = !failed;
                failed |= answer.is_err();
                if counts {
                    answers.push(answer);
                }
            }
            if failed {
                break;
            }
        }
        answers
    }

    async fn write_one(&self, write: Write) -> Result<Stored, StoreError> {
        match write {
            Write::Create(resource) => self.create(resource).await,
            Write::Update(resource, expected) => self.update(resource, &expected).await,
            Write::Delete(key, expected) => self.delete(&key, expected.as_ref()).await,
        }
    }
}

/// Cuts writes into runs whose members may go at once: creations of one kind that follow one another. All others are alone.
fn runs(writes: Vec<Write>) -> Vec<Vec<Write>> {
    let mut writes: VecDeque<Write> = writes.into();
    let mut runs = Vec::new();
    while let Some(first) = writes.pop_front() {
        let mut keys = BTreeSet::new();
        let kind = created(&first).map(|key| {
            let kind = key.kind;
            keys.insert(key);
            kind
        });
        let mut run = vec![first];
        while let Some(next) = writes.front().and_then(created)
            && Some(next.kind) == kind
            && keys.insert(next)
        {
            run.extend(writes.pop_front());
        }
        runs.push(run);
    }
    runs
}

fn created(write: &Write) -> Option<api::Key> {
    match write {
        Write::Create(resource) => Some(resource.key()),
        Write::Update(..) | Write::Delete(..) => None,
    }
}

#[cfg(test)]
mod tests {
    use api::{GlobalNetworkSet, Key, Kind, Node, NodeSpec};
    use datastore::Revision;

    use super::*;

    #[test]
    fn creations_of_one_kind_go_at_once() {
        let set = |name: &str| GlobalNetworkSet::new(name, Default::default());
        let write = |text: &str| match text.split_at(1) {
            ("+", name) => Write::Create(set(name).into()),
            ("n", name) => Write::Create(Node::new(name, NodeSpec::default()).into()),
            ("=", name) => Write::Update(set(name).into(), Revision("1".into())),
            (_, name) => Write::Delete(Key::cluster(Kind::GlobalNetworkSet, name), None),
        };
        let check = |texts: &str, expected: &[usize]| {
            let writes: Vec<Write> = texts.split_whitespace().map(write).collect();
            let runs = runs(writes.clone());
            assert_eq!(runs.iter().map(Vec::len).collect::<Vec<_>>(), expected, "{texts}");
            assert_eq!(runs.concat(), writes);
        };
        check("", &[]);
        check("+a +b +c", &[3]);
        check("+a +b =c =d nx ny", &[2, 1, 1, 2]);
        // The second one is judged by what the first one left.
        check("+a +b +a", &[2, 1]);
        check("+a -a +a", &[1, 1, 1]);
    }
}
