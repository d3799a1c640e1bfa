package report_test

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pgidem/idempotency/bench/peers"
	"github.com/pgidem/idempotency/bench/report"
	"github.com/pgidem/idempotency/bench/results"
)

const docs = "../../docs"

// committed are the results that the docs were made from.
func committed(t *testing.T) (run results.Run, steps *results.Run, scale *results.Scale) {
	t.Helper()
	if err := results.Read(filepath.Join(docs, "benchmarks", "bench.json"), &run); err != nil {
		t.Fatal(err)
	}
	if err := results.Read(filepath.Join(docs, "benchmarks", "steps.json"), &steps); err != nil {
		t.Fatal(err)
	}
	if err := results.Read(filepath.Join(docs, "benchmarks", "scale.json"), &scale); err != nil {
		t.Fatal(err)
	}
	return run, steps, scale
}

func TestDocsAreMadeFromTheirResultsAndByNobodysHand(t *testing.T) {
	run, steps, scale := committed(t)
	folder := t.TempDir()
	if err := report.Docs(folder, run, steps, scale); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"benchmarks.md", "benchmarks/tables.md", "benchmarks/latency.svg", "benchmarks/storm.svg", "benchmarks/growth.svg"} {
		want, err := os.ReadFile(filepath.Join(folder, file))
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(docs, file))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("docs/%s is not what `make bench-report` makes of docs/benchmarks/*.json", file)
		}
		if strings.HasSuffix(file, ".svg") {
			wellFormed(t, file, want)
		}
	}
}

// The README's three numbers, each with what it is called in the summary.
func TestReadmeNamesTheNumbersOfTheRun(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(docs, "benchmarks.md"))
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for summary, says := range map[string]string{
		"| first call, 1 ms latency, ":                            "a first call takes %s times as long as the bare transaction",
		"| first call of one statement, QueryRow, 1 ms latency, ": "one of a single statement (`QueryRow`) %s times",
		"| replay of a known key, 1 ms latency, ":                 "a replay of a key that the process knows %s times as long as a bare select",
	} {
		_, line, _ := strings.Cut(string(page), summary)
		_, line, _ = strings.Cut(line, " | ")
		number, _, found := strings.Cut(line, "×")
		if says = fmt.Sprintf(says, number); !found || !strings.Contains(string(readme), says) {
			t.Errorf("README.md does not say %q", says)
		}
	}
}

// The page of questions has lines of the table that one chooses by, without its last cells.
func TestPageOfQuestionsHasTheFiguresOfTheRun(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(docs, "benchmarks.md"))
	if err != nil {
		t.Fatal(err)
	}
	questions, err := os.ReadFile(filepath.Join(docs, "faq.md"))
	if err != nil {
		t.Fatal(err)
	}
	compared := 0
	for line := range strings.Lines(string(questions)) {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, "|") || !strings.Contains(line, "× |") {
			continue
		}
		compared++
		if !strings.Contains(string(page), "\n"+line) {
			t.Errorf("docs/faq.md has other figures than docs/benchmarks.md: %s", line)
		}
	}
	if compared < 7 {
		t.Errorf("only %d lines have figures: is the pattern right?", compared)
	}
	for _, line := range []struct{ peer, says string }{
		{"\n| **" + peers.Procedure + "** | ", "a `Procedure` takes %s times"},
		{"\n| DBOS Transact, steps | ", "DBOS Transact %s times, as long as the same code without idempotency"},
	} {
		_, after, _ := strings.Cut(string(page), line.peer)
		number, _, found := strings.Cut(after, "×")
		if says := fmt.Sprintf(line.says, number); !found || !strings.Contains(string(questions), says) {
			t.Errorf("docs/faq.md does not say %q", says)
		}
	}
}

func TestCommandIsShownAsItIsTyped(t *testing.T) {
	for command, want := range map[string]string{
		"bench run": "make bench",
		"bench run -peers idempotency -rounds 50":            "make bench BENCH='-peers idempotency -rounds 50'",
		"bench scale -rows 20000000 -kept=true":              "make bench-scale ROWS=20000000",
		"bench scale -rows 200000 -kept=false -window 700ms": "make bench-scale ROWS=200000 BENCH='-window 700ms'",
		"other": "other",
	} {
		if got := report.Typed(command); got != want {
			t.Errorf("%q is shown as %q, want %q", command, got, want)
		}
	}
}

func wellFormed(t *testing.T, file string, text []byte) {
	t.Helper()
	decoder := xml.NewDecoder(bytes.NewReader(text))
	for {
		switch _, err := decoder.Token(); {
		case errors.Is(err, io.EOF):
			return
		case err != nil:
			t.Errorf("%s: %v", file, err)
			return
		}
	}
}

func TestReportOfSomeSectionsLeavesTheOthersOut(t *testing.T) {
	run := results.Run{
		Command: "bench run -sections faults",
		Peers:   []results.Peer{{Name: peers.Bare}, {Name: "other"}},
		Faults: []results.Fault{
			{Peer: peers.Bare, Kind: results.Killed, Keys: 2, Effects: []int{1, 1}, Answers: 2, Took: time.Millisecond},
			{Peer: "other", Kind: results.LostResponse, Keys: 2, Effects: []int{1, 3}, Answers: 1, Error: "no\nanswer"},
		},
	}
	folder := t.TempDir()
	if err := report.Docs(folder, run, nil, nil); err != nil {
		t.Fatal(err)
	}
	var text []byte
	for _, file := range []string{"benchmarks.md", "benchmarks/tables.md"} {
		part, err := os.ReadFile(filepath.Join(folder, file))
		if err != nil {
			t.Fatal(err)
		}
		text = append(text, part...)
	}
	for _, want := range []string{
		"| other | - | - | - | - | **1 to 3** | - | - |", // what one decides by
		"| bare transaction | 1 | 2 of 2 | 1.00 ms | - | - | - | 0 |",
		"| other | - | - | - | **1 to 3** | 1 of 2 | 0.00 ms | 0 |",
		"`no answer`",
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
	for _, not := range []string{"## First call", "## Storm", ".svg", "has grown", "asks somebody else"} {
		if strings.Contains(string(text), not) {
			t.Errorf("%q is there without results for it", not)
		}
	}
}

func TestOneStatementHasATableOfItsOwn(t *testing.T) {
	run := results.Run{
		Peers: []results.Peer{{Name: peers.Bare}, {Name: peers.QueryRow}},
		Counts: []results.Counts{
			{Peer: peers.QueryRow, First: results.Cost{Waited: 1, WAL: 890, XIDs: 1}, Replay: results.Cost{Waited: 1}},
		},
		Timed: []results.Timed{
			{Section: results.First, Link: results.Delay, Callers: 16, Peer: peers.Bare, Calls: 1, Ratio: 1},
			{Section: results.First, Link: results.Delay, Callers: 16, Peer: peers.QueryRow, Calls: 1, Ratio: 0.8},
			{Section: results.Replay, Link: results.Socket, Callers: 1, Peer: peers.QueryRow, Calls: 1, Ratio: 1.1},
			{Section: results.Replay, Link: results.Socket, Callers: 1, Peer: peers.QueryRow + results.Unknown, Calls: 1, Ratio: 2.2},
		},
	}
	var text bytes.Buffer
	report.Run(&text, run)
	for _, want := range []string{
		"| round trips that a first call / a replay waits for | - | 1 / 1 | - | - | - |",
		"| write-ahead log of a first call / a replay, bytes | - | 890 / 0 | - | - | - |",
		"| transaction ids of a first call / a replay | - | 1 / 0 | - | - | - |",
		"latency, 16 callers | 1.00× | 0.80× | - | - | - |",
		"| replay, unix socket, 1 caller | - | 1.10× | - | - | - |",
		"| replay, unix socket, 1 caller, key unknown to the process | - | 2.20× | - | - | - |",
		"| **idempotency.QueryRow**: first call | 0 | 1 | 890 | 1 | 0 | 0 | - |", // nobody waits for it
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("%q is missing in\n%s", want, text.String())
		}
	}
	run.Timed, run.Counts = run.Timed[:1], nil
	text.Reset()
	if report.Run(&text, run); strings.Contains(text.String(), "one statement") {
		t.Errorf("there is a table without what it is about:\n%s", text.String())
	}
}

func TestOperationsOfStepsSayWhatTheProviderHasCharged(t *testing.T) {
	run := results.Run{
		Peers: []results.Peer{{Name: peers.BareSteps}, {Name: peers.Procedure}},
		Counts: []results.Counts{
			{Peer: peers.BareSteps, First: results.Cost{Waited: 6}},
			{Peer: peers.Procedure, First: results.Cost{Waited: 7, XIDs: 3}, Replay: results.Cost{Waited: 1}, Held: 1, Executed: 1},
		},
		Timed: []results.Timed{
			{Section: results.First, Link: results.Delay, Callers: 8, Peer: peers.BareSteps, Calls: 1, Ratio: 1},
			{Section: results.First, Link: results.Delay, Callers: 8, Peer: peers.Procedure, Calls: 1, Ratio: 1.2},
		},
		Faults: []results.Fault{
			{Peer: peers.BareSteps, Kind: results.KilledInCall, Keys: 2, Effects: []int{2, 2}, Charges: []int{1, 2}, Requests: []int{2, 2}, Answers: 2, Took: time.Millisecond},
			{Peer: peers.Procedure, Kind: results.KilledInCall, Keys: 2, Effects: []int{1, 1}, Charges: []int{1, 1}, Requests: []int{2, 2}, Answers: 1, Error: "no\nanswer"},
		},
	}
	var text bytes.Buffer
	report.Steps(&text, run)
	for _, want := range []string{
		"|  | bare transactions and request | **idempotency.Procedure** |",
		"| round trips that a first call / a replay waits for | 6 / 0 | 7 / 1 |",
		"| transaction ids of a first call / a replay | 0 / 0 | 3 / 0 |",
		"| connections held by 64 duplicates of one key | - | 1 (1 executed) |",
		"latency, 8 callers | 1.00× | 1.20× |",
		"when the provider has charged: charges at the provider | **1 to 2** | 1 |",
		"| business rows | **2** | 1 |",
		"| requests at the provider | 2 | 2 |",
		"| keys answered, after | 2 of 2, 1.00 ms | 1 of 2, 0.00 ms |",
		"`no answer`",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("%q is missing in\n%s", want, text.String())
		}
	}
	if strings.Contains(text.String(), results.LostAnswer) {
		t.Errorf("there is a row without results:\n%s", text.String())
	}
}
