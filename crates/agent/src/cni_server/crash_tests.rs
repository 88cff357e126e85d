//! A crash at any step, and races: nothing leaks, and nothing that was promised is lost.

use cni::protocol::Verb;

use super::endpoint::pending_of;
use super::fakes::World;

/// What a crash leaves, and what makes good of it.
#[derive(Clone, Copy, Debug)]
enum Then {
    /// The agent starts again, nobody asks anything.
    Nothing,
    /// The runtime tries again.
    Add,
    /// The runtime gives up.
    Del,
    /// The runtime gives up while the agent is away: the plugin notes it.
    NotedDel,
}

#[tokio::test]
async fn a_crash_anywhere_in_add_is_made_good() {
    for then in [Then::Nothing, Then::Add, Then::Del, Then::NotedDel] {
        for before in [&[][..], &["older"], &["a"]] {
            let mut points = 0;
            while crash_and_recover(Verb::Add, before, points + 1, then).await {
                points += 1;
            }
            assert!(points >= 8 || before == ["a"], "{points} crash points");
        }
    }
}

#[tokio::test]
async fn a_crash_anywhere_in_del_is_made_good() {
    for then in [Then::Add, Then::Del, Then::NotedDel] {
        for before in [&["a"][..], &["a", "newer"]] {
            let mut points = 0;
            while crash_and_recover(Verb::Del, before, points + 1, then).await {
                points += 1;
            }
            assert!(points >= 3, "{points} crash points");
        }
    }
}

/// Attaches some containers of one pod, crashes a request for container `a` at a point, starts again. Answers whether there
/// was such a point.
async fn crash_and_recover(verb: Verb, before: &[&str], point: usize, then: Then) -> bool {
    let world = World::new(8);
    let server = world.server().await;
    for container in before {
        world.add(&server, container, "p").await.unwrap();
    }
    let request = world.request(verb, "a", "p");
    if world.crash(server, point, request.clone()).await.is_none() {
        return false;
    }
    if let Then::NotedDel = then {
        let naming = super::Naming {
            node: "n1".into(),
            prefix: "cali".into(),
        };
        let noted = pending_of(&naming.intent(&request).unwrap());
        world.journal().write_pending(&noted).unwrap();
    }
    let server = world.server().await;
    match then {
        Then::Nothing | Then::NotedDel => {}
        Then::Add => drop(world.add(&server, "a", "p").await.unwrap()),
        Then::Del => world.del(&server, "a", "p").await,
    }
    assert_eq!(
        server.finish_deletions().await,
        0,
        "{verb:?} {before:?} {point} {then:?}"
    );
    world.assert_consistent(&server).await;
    let others = before.iter().filter(|name| **name != "a").count();
    let left = server.endpoints().len() - others;
    match then {
        Then::Add => assert_eq!(left, 1),
        Then::Del | Then::NotedDel => assert_eq!(left, 0),
        // Only an ADD that had been answered before may stand.
        Then::Nothing => assert_eq!(left, usize::from(before == ["a"]), "{verb:?} {point}"),
    }
    for container in before.iter().chain(&["a"]) {
        world.del(&server, container, "p").await;
    }
    world.assert_empty(&server).await;
    true
}

#[tokio::test]
async fn races_leak_nothing() {
    for seed in 0..300 {
        let world = World::new(16);
        let server = world.server().await;
        world.shuffle(seed);
        let containers = [("a", "p"), ("b", "p"), ("c", "q")];
        let mut tasks = Vec::new();
        for number in 0..12 {
            let (container, pod) = containers[(seed as usize + number) % 3];
            let verb = match (seed as usize / 3 + number * 7) % 5 {
                0..=2 => Verb::Add,
                3 => Verb::Del,
                _ => Verb::Check,
            };
            let (server, request) = (server.clone(), world.request(verb, container, pod));
            tasks.push(tokio::spawn(async move { server.handle(request).await }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(server.finish_deletions().await, 0, "seed {seed}");
        world.assert_consistent(&server).await;
        for (container, pod) in containers {
            world.del(&server, container, pod).await;
        }
        world.assert_empty(&server).await;
    }
}

#[tokio::test]
async fn races_with_failures_leak_nothing() {
    let steps = [
        "assign",
        "attach",
        "program",
        "unprogram",
        "detach",
        "release",
        "store",
        "held",
        "check",
    ];
    for seed in 0..100 {
        let world = World::new(16);
        let server = world.server().await;
        world.shuffle(seed);
        let mut tasks = Vec::new();
        for number in 0..8 {
            let verb = if (seed as usize + number).is_multiple_of(3) {
                Verb::Del
            } else {
                Verb::Add
            };
            let (server, request) = (server.clone(), world.request(verb, ["a", "b"][number % 2], "p"));
            tasks.push(tokio::spawn(async move { server.handle(request).await }));
        }
        for step in 0..20 {
            world.fail(&[steps[(seed as usize + step) % steps.len()]]);
            tokio::task::yield_now().await;
        }
        world.fail(&[]);
        for task in tasks {
            task.await.unwrap();
        }
        while server.finish_deletions().await > 0 {}
        for container in ["a", "b"] {
            world.del(&server, container, "p").await;
        }
        world.assert_empty(&server).await;
    }
}
