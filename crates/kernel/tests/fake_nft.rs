//! The fake nf_tables keeps the contract, and does what it adds to it.

use futures::FutureExt;
use futures::future::BoxFuture;
use kernel::nft::contract::Bench;
use kernel::nft::*;

kernel::nft_contract_tests!(examine);

fn examine(clause: for<'a> fn(&'a mut dyn Bench) -> BoxFuture<'a, ()>) {
    let kernel = FakeNft::new();
    let stranger = kernel.stranger();
    // The fake never waits: a clause that is not done at once waits for an event that does not come.
    clause(&mut Fake(kernel, stranger))
        .now_or_never()
        .expect("every event has come");
}

struct Fake(FakeNft, FakeNft);

impl Bench for Fake {
    fn kernel(&mut self) -> &mut dyn NftKernel {
        &mut self.0
    }

    fn stranger(&mut self) -> &mut dyn NftKernel {
        &mut self.1
    }
}

fn add_chain(name: &str) -> Transaction {
    Transaction {
        table: TableName("t".into()),
        changes: vec![Change::AddChain(Chain {
            name: name.into(),
            base: None,
        })],
    }
}

#[test]
fn an_injected_failure_hits_what_it_picks_as_often_as_told() {
    let kernel = FakeNft::new();
    kernel.fail(1, NftError::Busy, |transaction| *transaction == add_chain("a"));
    assert!(kernel.apply_now(&add_chain("b")).is_ok());
    assert_eq!(kernel.apply_now(&add_chain("a")), Err(NftError::Busy));
    assert!(kernel.apply_now(&add_chain("a")).is_ok());
    let done: Vec<bool> = kernel.take_applied().iter().map(|(_, result)| result.is_ok()).collect();
    assert_eq!(done, [true, false, true]);
}

#[test]
fn a_broken_channel_answers_nothing_until_it_is_healed() {
    let kernel = FakeNft::new();
    kernel.break_channel("gone");
    assert_eq!(kernel.apply_now(&add_chain("a")), Err(NftError::Broken("gone".into())));
    kernel.heal();
    assert!(kernel.apply_now(&add_chain("a")).is_ok());
}

#[test]
fn counted_packets_read_back() {
    let kernel = FakeNft::new();
    let mut transaction = add_chain("a");
    transaction.changes.push(Change::AddRule(
        "a".into(),
        Rule {
            actions: vec![Statement::Counter],
            ..Rule::default()
        },
    ));
    kernel.apply_now(&transaction).expect("a rule with a counter");
    let rules = |kernel: &FakeNft| {
        kernel.seen(&transaction.table).expect("is there").chains[&"a".into()]
            .rules
            .clone()
    };
    let count = Count { packets: 3, bytes: 200 };
    kernel.count(&transaction.table, rules(&kernel)[0].handle, count);
    assert_eq!(rules(&kernel)[0].count, Some(count));
}
