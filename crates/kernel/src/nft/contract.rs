//! What every [`NftKernel`] must do, as an examination that the fake and the live one take alike.
//!
//! A clause is a function over a [`Bench`]; [`nft_contract_tests!`](crate::nft_contract_tests) makes a test of each.

use futures::StreamExt;
use futures::future::BoxFuture;

use super::*;

mod samples;

/// A kernel to examine, without tables, and somebody else at the same kernel.
pub trait Bench: Send {
    /// The kernel.
    fn kernel(&mut self) -> &mut dyn NftKernel;
    /// The same kernel in the hands of somebody else.
    fn stranger(&mut self) -> &mut dyn NftKernel;
}

/// Makes a test of every clause. `$run` is a function `fn(fn(&mut dyn Bench) -> BoxFuture<'_, ()>)` that runs a clause on a
/// fresh bench.
#[macro_export]
macro_rules! nft_contract_tests {
    ($run:path) => {
        $crate::nft_contract_tests!(@each $run:
            every_rule_reads_back
            every_set_reads_back
            every_base_chain_reads_back
            what_cannot_be_said_is_not_sent
            all_or_nothing
            what_is_absent_is_refused
            what_is_in_use_stays
            adding_twice_is_fine_and_otherwise_is_refused
            intervals_do_not_overlap
            jumps_end
            unreachable_circles_are_nobodys_business
            translation_has_its_places
            a_chain_is_rewritten_at_once
            a_chain_goes_with_its_rules
            a_map_entry_is_replaced_at_once
            a_table_is_deleted_with_all_in_it
            tables_are_apart
            the_generation_counts_changes
            others_are_announced
        );
    };
    (@each $run:path: $($clause:ident)*) => {
        $(#[test] fn $clause() { $run($crate::nft::contract::$clause); })*
    };
}

/// The table of the clauses.
const TABLE: &str = "margay-contract";

/// Rules of every kind read back as they were written, in their order, with their comments and counters.
pub fn every_rule_reads_back(bench: &mut dyn Bench) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        let kernel = bench.kernel();
        let mut changes = samples::sets_and_chains();
        let rules = samples::rules();
        for (number, rule) in rules.iter().enumerate() {
            let rule = Rule {
                comment: Some(format!("rule {number}")),
                ..rule.clone()
            };
            changes.push(Change::AddRule("plain".into(), rule));
        }
        for rule in samples::nat_rules() {
            changes.push(Change::AddRule("postrouting".into(), rule));
        }
        for rule in samples::destination_nat_rules() {
            changes.push(Change::AddRule("prerouting".into(), rule));
        }
        fine(kernel, changes.clone()).await;
        let seen = read(kernel).await;
        for chain in ["plain", "postrouting", "prerouting"] {
            let wanted = changes.iter().filter_map(|change| match change {
                Change::AddRule(name, rule) if name.0 == chain => Some(rule),
                _ => None,
            });
            let rules = &seen.chains[&ChainName::from(chain)].rules;
            for (there, wanted) in rules.iter().zip(wanted.clone()) {
                assert_eq!(there.rule.as_ref(), Some(wanted));
                assert_eq!(there.comment, wanted.comment);
                let counts = wanted.actions.contains(&Statement::Counter);
                assert_eq!(there.count, counts.then(Count::default));
            }
            assert_eq!(rules.len(), wanted.count());
            let mut handles: Vec<u64> = rules.iter().map(|rule| rule.handle).collect();
            handles.sort_unstable();
            handles.dedup();
            assert_eq!(handles.len(), rules.len(), "numbers differ");
        }
        let rules = kernel.rules(&table()).await.expect("reads");
        let of_read = seen.chains.into_iter().map(|(name, chain)| (name, chain.rules));
        assert_eq!(rules, of_read.collect());
    })
}

/// Sets and maps of every kind read back with their elements, lone addresses and ports as such.
pub fn every_set_reads_back(bench: &mut dyn Bench) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        let kernel = bench.kernel();
        fine(kernel, samples::sets_and_chains()).await;
        let sets = samples::sets();
        for (spec, elements) in &sets {
            fine(kernel, vec![add(&spec.name.0, elements.clone())]).await;
        }
        let seen = read(kernel).await;
        for (spec, elements) in &sets {
            let there = &seen.sets[&spec.name];
            assert_eq!(there.spec.as_ref(), Some(spec));
            let wanted = elements.iter().map(Element::canonical).collect();
            assert_eq!(there.elements, wanted, "{}", spec.name);
            assert_eq!(there.strange, 0, "{}", spec.name);
        }
        assert_eq!(seen.sets.len(), sets.len());
        // They go one by one, each alone, however they were written.
        for (spec, elements) in &sets {
            for (at, element) in elements.iter().enumerate() {
                fine(kernel, vec![remove(&spec.name.0, vec![element.clone()])]).await;
                let left = elements[at + 1..].iter().map(Element::canonical).collect();
                assert_eq!(read(kernel).await.sets[&spec.name].elements, left, "{}", spec.name);
            }
        }
        // And all at once.
        for (spec, elements) in &sets {
            fine(kernel, vec![add(&spec.name.0, elements.clone())]).await;
            fine(kernel, vec![Change::FlushSet(spec.name.clone())]).await;
            assert!(read(kernel).await.sets[&spec.name].elements.is_empty());
        }
    })
}

/// Base chains of every hook read back; another policy is taken, another place refused.
pub fn every_base_chain_reads_back(bench: &mut dyn Bench) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        let kernel = bench.kernel();
        let hooks = [
            Hook::Prerouting,
            Hook::Input,
            Hook::Forward,
            Hook::Output,
            Hook::Postrouting,
        ];
        for (kind, hook) in hooks
            .map(|hook| (ChainKind::Filter, hook))
            .into_iter()
            .chain([Hook::Prerouting, Hook::Input, Hook::Output, Hook::Postrouting].map(|hook| (ChainKind::Nat, hook)))
        {
            let base = BaseChain {
                kind,
                hook,
                priority: -10,
                drop: false,
            };
            let name = format!("{kind:?}-{hook:?}");
            for drop in [false, true, true] {
                let base = BaseChain { drop, ..base };
                fine(kernel, vec![base_chain(&name, base)]).await;
                assert_eq!(read(kernel).await.chains[&name.as_str().into()].base, Some(base));
            }
            let elsewhere = BaseChain { priority: 5, ..base };
            refused(
                kernel,
                vec![base_chain(&name, elsewhere)],
                0,
                &[Cause::Exists, Cause::Unsupported],
            )
            .await;
        }
        let forward = BaseChain {
            kind: ChainKind::Nat,
            hook: Hook::Forward,
            priority: 0,
            drop: false,
        };
        refused(kernel, vec![base_chain("nat", forward)], 0, &[Cause::Unsupported]).await;
        fine(kernel, vec![chain("a")]).await;
        let input = BaseChain {
            kind: ChainKind::Filter,
            hook: Hook::Input,
            ..forward
        };
        refused(
            kernel,
            vec![base_chain("a", input)],
            0,
            &[Cause::Exists, Cause::Unsupported],
        )
        .await;
    })
}

/// What makes no sense by itself is refused by its place, and nothing of the transaction happens.
pub fn what_cannot_be_said_is_not_sent(bench: &mut dyn Bench) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        let kernel = bench.kernel();
        for nonsense in samples::nonsense() {
            let transaction = transaction(vec![chain("a"), nonsense.clone()]);
            match kernel.apply(&transaction).await {
                Err(NftError::Invalid { change: 1, .. }) => {}
                other => panic!("{nonsense:?}: {other:?}"),
            }
            assert_eq!(kernel.read(&table()).await, Ok(None));
        }
    })
}

/// An error at the end undoes all, and says which change it was.
pub fn all_or_nothing(bench: &mut dyn Bench) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        let kernel = bench.kernel();
        let mut changes = samples::sets_and_chains();
        changes.extend(
            samples::rules()
                .into_iter()
                .map(|rule| Change::AddRule("plain".into(), rule)),
        );
        let fault = changes.len();
        changes.push(rule("plain", jump("nowhere")));
        changes.push(chain("after"));
        refused(kernel, changes.clone(), fault, &[Cause::Absent]).await;
        assert_eq!(kernel.read(&table()).await, Ok(None), "not even the table");

        changes.remove(fault);
        fine(kernel, changes).await;
        let before = read(kernel).await;
        let destructive = vec![
            Change::FlushChain("plain".into()),
            Change::DeleteChain("plain".into()),
            add("v4", vec![element(&["10.9.9.9"])]),
            Change::DeleteTable,
            chain("b"),
            Change::DeleteSet("v4".into()),
        ];
        refused(kernel, destructive, 5, &[Cause::Absent]).await;
        assert_eq!(read(kernel).await, before);
    })
}

/// Nothing can be done to, or refer to, what is not there.
pub fn what_is_absent_is_refused(bench: &mut dyn Bench) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        let kernel = bench.kernel();
        let mut start = samples::sets_and_chains();
        start.push(add("v4", vec![element(&["10.0.0.1"])]));
        start.push(add("nets", vec![element(&["10.0.0.0/24"])]));
        fine(kernel, start).await;
        let before = read(kernel).await;
        let lookup = |set: &str| Rule {
            matches: vec![Match::InSet {
                key: vec![Field::Address(IpFamily::V4, End::Source)],
                negate: false,
                set: set.into(),
            }],
            ..Rule::default()
        };
        for absent in [
            Change::FlushChain("nope".into()),
            Change::DeleteChain("nope".into()),
            rule("nope", Rule::default()),
            rule("plain", jump("nope")),
            rule("plain", lookup("nope")),
            Change::FlushSet("nope".into()),
            Change::DeleteSet("nope".into()),
            add("nope", vec![element(&["10.0.0.1"])]),
            remove("nope", vec![element(&["10.0.0.1"])]),
            remove("v4", vec![element(&["10.0.0.2"])]),
            remove("nets", vec![element(&["10.0.0.0/25"])]),
            remove("nets", vec![element(&["10.0.0.7"])]),
            add("map", vec![to(element(&["cali7"]), "nope")]),
        ] {
            refused(kernel, vec![absent], 0, &[Cause::Absent]).await;
        }
        assert_eq!(read(kernel).await, before);
    })
}

/// Chains and sets that something refers to are not deleted, until it goes.
pub fn what_is_in_use_stays(bench: &mut dyn Bench) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        let kernel = bench.kernel();
        let mut changes = samples::sets_and_chains();
        changes.extend([chain("by-rule"), chain("by-map")]);
        changes.push(rule("plain", jump("by-rule")));
        changes.push(add("map", vec![to(element(&["cali7"]), "by-map")]));
        changes.push(rule(
            "plain",
            Rule {
                verdict: Some(Verdict::Map {
                    key: vec![Field::Interface(Way::In)],
                    map: "map".into(),
                }),
                ..Rule::default()
            },
        ));
        fine(kernel, changes).await;
        let deletions = ["by-rule", "by-map"].map(|name| Change::DeleteChain(name.into()));
        for change in deletions.iter().cloned().chain([Change::DeleteSet("map".into())]) {
            refused(kernel, vec![change], 0, &[Cause::InUse]).await;
        }
        // Flushing a chain frees what its rules used, emptying a map the chains in it.
        let [by_rule, by_map] = deletions;
        let goes = vec![
            Change::FlushChain("plain".into()),
            by_rule,
            Change::FlushSet("map".into()),
            by_map,
            Change::DeleteSet("map".into()),
        ];
        fine(kernel, goes).await;
        let seen = read(kernel).await;
        assert!(!seen.chains.contains_key(&"by-rule".into()) && !seen.sets.contains_key(&"map".into()));
    })
}

/// The same again is fine and changes nothing; the same name with other properties is refused.
pub fn adding_twice_is_fine_and_otherwise_is_refused(bench: &mut dyn Bench) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        let kernel = bench.kernel();
        let mut changes = samples::sets_and_chains();
        let sets = samples::sets();
        changes.extend(sets.iter().map(|(spec, elements)| add(&spec.name.0, elements.clone())));
        fine(kernel, changes.clone()).await;
        let before = read(kernel).await;
        fine(kernel, changes).await;
        let after = read(kernel).await;
        assert_eq!((&after.chains, &after.sets), (&before.chains, &before.sets));

        for (spec, _) in &sets {
            let other_interval = SetSpec {
                interval: !spec.interval,
                ..spec.clone()
            };
            let mut other_key = spec.clone();
            other_key.key = vec![KeyType::Address(IpFamily::V6), KeyType::Address(IpFamily::V6)];
            for other in [other_interval, other_key] {
                refused(kernel, vec![Change::AddSet(other)], 0, &[Cause::Exists]).await;
            }
        }
        let other = vec![add("map", vec![to(element(&["cali1"]), "other")])];
        refused(kernel, other, 0, &[Cause::Exists, Cause::InUse]).await;
    })
}

/// Overlapping intervals are refused; neighbours are fine. (Of several fields, Linux notices only if one end of the new one
/// lies within the old one.)
pub fn intervals_do_not_overlap(bench: &mut dyn Bench) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        let kernel = bench.kernel();
        let mut start = samples::sets_and_chains();
        start.push(add("nets", vec![element(&["10.0.4.0/24"])]));
        start.push(add("nets6", vec![element(&["2001:db8:4::/48"])]));
        start.push(add("net-ports", vec![element(&["10.0.4.0/24", "udp", "10-20"])]));
        fine(kernel, start).await;
        for (set, key) in [
            ("nets", &["10.0.4.0/25"][..]),
            ("nets", &["10.0.0.0/16"]),
            ("nets", &["10.0.4.255"]),
            ("nets6", &["2001:db8:4:1::/64"]),
            ("nets6", &["2001:db8::/32"]),
            ("net-ports", &["10.0.4.0/25", "udp", "15"]),
        ] {
            refused(kernel, vec![add(set, vec![element(key)])], 0, &[Cause::Exists]).await;
        }
        for (set, key) in [
            ("nets", &["10.0.5.0/24"][..]),
            ("nets", &["10.0.3.0/24"]),
            ("nets", &["255.0.0.0/8"]),
            ("nets", &["0.0.0.0/8"]),
            ("nets6", &["2001:db8:5::/48"]),
            ("net-ports", &["10.0.4.0/24", "tcp", "10-20"]),
            ("net-ports", &["10.0.4.0/24", "udp", "21-65535"]),
        ] {
            fine(kernel, vec![add(set, vec![element(key)])]).await;
        }
        // One that goes makes room at once.
        let wider = vec![
            remove("nets", vec![element(&["10.0.4.0/24"]), element(&["10.0.5.0/24"])]),
            add("nets", vec![element(&["10.0.4.0/23"])]),
        ];
        fine(kernel, wider).await;
    })
}

/// Fifteen jumps below a base chain are fine, sixteen and circles are refused, through rules and maps alike.
pub fn jumps_end(bench: &mut dyn Bench) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        let kernel = bench.kernel();
        let name = |at: usize| format!("chain-{at}");
        let mut changes: Vec<Change> = (1..=16).map(|at| chain(&name(at))).collect();
        changes.push(base_chain("base", samples::filter(Hook::Forward)));
        changes.push(Change::AddSet(samples::map()));
        changes.push(rule("base", jump(&name(1))));
        changes.extend((1..15).map(|at| rule(&name(at), jump(&name(at + 1)))));
        fine(kernel, changes).await;
        let before = read(kernel).await;
        let deeper = vec![rule(&name(16), Rule::default()), rule(&name(15), jump(&name(16)))];
        refused(kernel, deeper, 1, &[Cause::TooDeep]).await;
        for back in [1, 14] {
            let circle = vec![rule(&name(14), Rule::default()), rule(&name(14), jump(&name(back)))];
            refused(kernel, circle, 1, &[Cause::TooDeep]).await;
        }
        let ask = Rule {
            verdict: Some(Verdict::Map {
                key: vec![Field::Interface(Way::In)],
                map: "map".into(),
            }),
            ..Rule::default()
        };
        let by_map = vec![rule(&name(3), ask), add("map", vec![to(element(&["cali1"]), &name(2))])];
        refused(kernel, by_map, 1, &[Cause::TooDeep]).await;
        refused(
            kernel,
            vec![rule(&name(3), jump("base"))],
            0,
            &[Cause::Unsupported, Cause::TooDeep],
        )
        .await;
        assert_eq!(read(kernel).await, before);
    })
}

/// Chains that no packet can reach may refer to each other.
pub fn unreachable_circles_are_nobodys_business(bench: &mut dyn Bench) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        let kernel = bench.kernel();
        fine(kernel, vec![chain("a"), chain("b"), rule("a", jump("b"))]).await;
        fine(kernel, vec![rule("b", jump("a"))]).await;
        let reach = vec![
            base_chain("base", samples::filter(Hook::Input)),
            rule("base", jump("a")),
        ];
        refused(kernel, reach, 1, &[Cause::TooDeep]).await;
    })
}

/// Translation happens in nat chains at its hooks, also through jumps.
pub fn translation_has_its_places(bench: &mut dyn Bench) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        let kernel = bench.kernel();
        let masquerade = &samples::nat_rules()[0];
        let translate = &samples::destination_nat_rules()[0];
        fine(kernel, [samples::sets_and_chains(), vec![chain("shared")]].concat()).await;
        for (chain, body) in [
            ("forward", masquerade),
            ("prerouting", masquerade),
            ("postrouting", translate),
        ] {
            refused(kernel, vec![rule(chain, body.clone())], 0, &[Cause::Unsupported]).await;
        }
        let through = vec![rule("shared", masquerade.clone()), rule("forward", jump("shared"))];
        refused(kernel, through, 1, &[Cause::Unsupported]).await;
        let through = vec![rule("shared", masquerade.clone()), rule("postrouting", jump("shared"))];
        fine(kernel, through).await;
    })
}

/// A chain's rules are replaced in one step; references to it stay.
pub fn a_chain_is_rewritten_at_once(bench: &mut dyn Bench) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        let kernel = bench.kernel();
        let mut changes = samples::sets_and_chains();
        changes.extend([chain("policy"), rule("forward", jump("policy"))]);
        changes.extend((0..10).map(|_| rule("policy", samples::rules()[0].clone())));
        fine(kernel, changes).await;
        let mut rewrite = vec![Change::FlushChain("policy".into())];
        let rules: Vec<Rule> = samples::rules().into_iter().take(7).collect();
        rewrite.extend(rules.iter().map(|body| rule("policy", body.clone())));
        fine(kernel, rewrite).await;
        let seen = read(kernel).await;
        let there: Vec<Rule> = seen.chains[&"policy".into()]
            .rules
            .iter()
            .filter_map(|here| here.rule.clone())
            .collect();
        assert_eq!(there, rules);
    })
}

/// Deleting a chain deletes its rules, and what they referred to is free.
pub fn a_chain_goes_with_its_rules(bench: &mut dyn Bench) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        let kernel = bench.kernel();
        fine(kernel, vec![chain("a"), chain("b"), rule("a", jump("b"))]).await;
        fine(
            kernel,
            vec![Change::DeleteChain("a".into()), Change::DeleteChain("b".into())],
        )
        .await;
        assert!(read(kernel).await.chains.is_empty());
    })
}

/// Where a map leads is changed in one transaction.
pub fn a_map_entry_is_replaced_at_once(bench: &mut dyn Bench) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        let kernel = bench.kernel();
        let mut changes = samples::sets_and_chains();
        changes.push(add(
            "map",
            vec![to(element(&["cali1"]), "other"), to(element(&["cali2"]), "other")],
        ));
        fine(kernel, changes).await;
        let new = to(element(&["cali1"]), "plain");
        let replace = vec![
            remove("map", vec![to(element(&["cali1"]), "other")]),
            add("map", vec![new.clone()]),
        ];
        fine(kernel, replace).await;
        let seen = read(kernel).await;
        assert_eq!(
            seen.sets[&"map".into()].elements,
            [new, to(element(&["cali2"]), "other")].into()
        );
    })
}

/// A table goes with all that is in it, and deleting an absent one is fine; what follows makes it anew.
pub fn a_table_is_deleted_with_all_in_it(bench: &mut dyn Bench) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        let kernel = bench.kernel();
        for _ in 0..2 {
            fine(kernel, vec![Change::DeleteTable]).await;
            assert_eq!(kernel.read(&table()).await, Ok(None));
            let mut changes = samples::sets_and_chains();
            changes.extend(samples::rules().into_iter().map(|body| rule("plain", body)));
            changes.push(rule("forward", jump("plain")));
            fine(kernel, changes).await;
        }
        fine(kernel, vec![Change::DeleteTable, chain("fresh")]).await;
        let seen = read(kernel).await;
        assert_eq!(seen.chains.keys().collect::<Vec<_>>(), [&ChainName::from("fresh")]);
        assert!(seen.sets.is_empty());
        fine(kernel, vec![chain("old"), Change::DeleteTable]).await;
        assert_eq!(kernel.read(&table()).await, Ok(None));
    })
}

/// What happens in one table is not seen in another.
pub fn tables_are_apart(bench: &mut dyn Bench) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        let foreign = TableName("somebody-else".into());
        let theirs = Transaction {
            table: foreign.clone(),
            changes: [
                samples::sets_and_chains(),
                vec![add("v4", vec![element(&["10.0.0.1"])])],
            ]
            .concat(),
        };
        bench.stranger().apply(&theirs).await.expect("a table of theirs");
        let before = bench.kernel().read(&foreign).await.expect("reads").expect("is there");
        let kernel = bench.kernel();
        assert_eq!(kernel.read(&table()).await, Ok(None));
        fine(kernel, samples::sets_and_chains()).await;
        fine(kernel, vec![add("v4", vec![element(&["10.0.0.2"])])]).await;
        fine(kernel, vec![Change::DeleteTable]).await;
        let after = kernel.read(&foreign).await.expect("reads").expect("is there");
        assert_eq!((after.chains, after.sets), (before.chains, before.sets));
    })
}

/// Every transaction that changes something makes it one more, no other does, and reading says when it was.
pub fn the_generation_counts_changes(bench: &mut dyn Bench) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        let kernel = bench.kernel();
        let start = kernel.generation().await.expect("answers");
        fine(kernel, samples::sets_and_chains()).await;
        let one = start.next();
        assert_eq!(kernel.generation().await, Ok(one));
        assert_eq!(read(kernel).await.generation, one);
        refused(kernel, vec![Change::FlushSet("nope".into())], 0, &[Cause::Absent]).await;
        fine(kernel, vec![]).await;
        assert_eq!(kernel.generation().await, Ok(one));
        fine(kernel, vec![add("v4", vec![element(&["10.0.0.1"])])]).await;
        let two = one.next();
        assert_eq!(kernel.generation().await, Ok(two));
        let theirs = Transaction {
            table: TableName("somebody-else".into()),
            changes: vec![chain("a")],
        };
        bench.stranger().apply(&theirs).await.expect("a table of theirs");
        assert_eq!(bench.kernel().generation().await, Ok(two.next()));
    })
}

/// What others do is announced, to our table or elsewhere; what we do is not.
pub fn others_are_announced(bench: &mut dyn Bench) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        fine(bench.kernel(), samples::sets_and_chains()).await;
        let mut events = bench.kernel().events(&table()).expect("listens");
        fine(bench.kernel(), vec![add("v4", vec![element(&["10.0.0.1"])])]).await;
        for changes in [
            vec![add("v4", vec![element(&["10.0.0.2"])])],
            vec![rule("plain", Rule::default())],
            vec![chain("theirs")],
            vec![Change::FlushChain("plain".into())],
            vec![Change::DeleteChain("theirs".into())],
            vec![Change::FlushSet("v4".into())],
            vec![Change::DeleteSet("v4".into())],
            vec![Change::DeleteTable],
        ] {
            fine(bench.stranger(), changes.clone()).await;
            let now = bench.stranger().generation().await.expect("answers");
            match events.next().await {
                Some(NftEvent::Touched { generation, .. }) if generation == now => {}
                other => panic!("{changes:?}: {other:?}"),
            }
        }
        let theirs = Transaction {
            table: TableName("somebody-else".into()),
            changes: vec![chain("a")],
        };
        bench.stranger().apply(&theirs).await.expect("a table of theirs");
        let generation = bench.stranger().generation().await.expect("answers");
        assert_eq!(events.next().await, Some(NftEvent::Elsewhere { generation }));
    })
}

async fn fine(kernel: &mut dyn NftKernel, changes: Vec<Change>) {
    let transaction = transaction(changes);
    if let Err(error) = kernel.apply(&transaction).await {
        panic!("{error}: {:#?}", error.change().map(|at| &transaction.changes[at]));
    }
}

async fn refused(kernel: &mut dyn NftKernel, changes: Vec<Change>, fault: usize, causes: &[Cause]) {
    let transaction = transaction(changes);
    match kernel.apply(&transaction).await {
        Err(NftError::Refused {
            change: Some(change),
            cause,
            ..
        }) if change == fault && causes.contains(&cause) => {}
        other => panic!("{:?}: {other:?}", transaction.changes[fault]),
    }
}

async fn read(kernel: &mut dyn NftKernel) -> TableState {
    kernel.read(&table()).await.expect("reads").expect("the table is there")
}

fn table() -> TableName {
    TableName(TABLE.into())
}

fn transaction(changes: Vec<Change>) -> Transaction {
    Transaction {
        table: table(),
        changes,
    }
}

fn chain(name: &str) -> Change {
    Change::AddChain(Chain {
        name: name.into(),
        base: None,
    })
}

fn base_chain(name: &str, base: BaseChain) -> Change {
    Change::AddChain(Chain {
        name: name.into(),
        base: Some(base),
    })
}

fn rule(chain: &str, rule: Rule) -> Change {
    Change::AddRule(chain.into(), rule)
}

fn jump(chain: &str) -> Rule {
    Rule {
        verdict: Some(Verdict::Jump(chain.into())),
        ..Rule::default()
    }
}

fn add(set: &str, elements: Vec<Element>) -> Change {
    Change::AddElements(set.into(), elements)
}

fn remove(set: &str, elements: Vec<Element>) -> Change {
    Change::DeleteElements(set.into(), elements)
}

fn element(key: &[&str]) -> Element {
    samples::element(key)
}

fn to(element: Element, chain: &str) -> Element {
    Element {
        verdict: Some(ElementVerdict::Jump(chain.into())),
        ..element
    }
}
