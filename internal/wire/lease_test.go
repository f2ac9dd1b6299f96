package wire

import (
	"bytes"
	"math"
	"testing"

	"pgregory.net/rapid"
)

// leaseSample returns operations that together have every field of the write lease.
func leaseSample() []*Operation {
	return []*Operation{
		{Lease: &Lease{Acquire: 1<<63 | 5, TTLMS: 2700}},
		{Lease: &Lease{Release: []uint64{1<<63 | 4, 17}, InUse: true}},
		{StampMS: 1_700_000_000_123, Seed: Seed{9}, Lease: &Lease{Under: 1<<63 | 5, Transaction: true, Base: 300, Keep: true, Checksum: 0xfedcba9876543210},
			Statements: []Statement{
				{SQL: "INSERT INTO t VALUES(?)", Args: []Argument{{Value: IntegerValue(1)}}},
				{SQL: "INSERT INTO t VALUES(?)", Args: []Argument{{Value: IntegerValue(2)}}, LaterMS: -3, Skipped: 2, State: &ConnState{Changes: 1, TotalChanges: 20, LastInsertID: -7}},
				{SQL: "INSERT OR FAIL INTO t VALUES(1),(1)", LaterMS: 1000, Fails: 2067},
				{SQL: "SELECT 1", State: &ConnState{}, ChangedSettings: ForeignKeysOff | RecursiveTriggers, DeferForeignKeys: true},
			}},
		{Lease: &Lease{}},
	}
}

// leaseState returns a state with a lease and waiters.
func leaseState() *State {
	ops := leaseSample()
	return &State{SQLIndex: 300, Applied: 310, Clock: 5000, Changed: 299, LastWaiter: 18, ContendedSince: 4000, Term: 3, History: 0x1020304050607080,
		Lease: HeldLease{ID: 1<<63 | 5, Session: 7, Base: 299, TTLMS: 2700, Idle: true},
		Sessions: []Session[Result]{{ID: 7, Sequence: 8, LastUsed: 9, Node: 2, Incarnation: 3, Results: []Result{
			{Lease: LeaseResult{State: LeaseQueued, ID: 17}}, {Lease: LeaseResult{State: LeaseGranted, ID: 1<<63 | 5, Base: 299}},
			{Lease: LeaseResult{State: LeaseKept, ID: 1, Base: 2}, Statements: []StatementResult{{RowsAffected: 1, TotalChanges: -9}}}, {Lease: LeaseResult{State: LeaseExpired}},
		}}},
		Waiters: []Waiter{{Number: 17, Session: 7, Sequence: 8, Index: 1, Operation: *ops[2]}, {Number: 18, Session: 9, Sequence: 1, Operation: *ops[0]}}}
}

func TestGoldenLease(t *testing.T) {
	for name, got := range map[string][]byte{
		"entry-lease":       encode(12, 345, leaseSample()),
		"open-session-node": EncodeOpenSession(0x1122334455667788, 3, 1<<40),
		"state-lease":       AppendState(nil, leaseState()),
	} {
		if want := golden(t, name, got); !bytes.Equal(got, want) {
			t.Errorf("%s is written differently than before:\n%x\n%x", name, got, want)
		}
	}
	var d Decoder
	if e, err := d.Decode(golden(t, "entry-lease", nil)); err != nil {
		t.Error(err)
	} else if err := same(e, 12, 345, leaseSample()); err != nil {
		t.Error(err)
	}
	if e, err := d.Decode(golden(t, "open-session-node", nil)); err != nil || !e.OpenSession || e.Node != 3 || e.Incarnation != 1<<40 {
		t.Errorf("decoded %+v, %v", e, err)
	}
	if s, err := DecodeState(golden(t, "state-lease", nil)); err != nil {
		t.Error(err)
	} else if err := sameState(s, leaseState()); err != nil {
		t.Error(err)
	}
}

// A decoded waiter does not refer to the bytes that it was decoded from.
func TestWaitersRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := Waiter{rapid.Uint64().Draw(t, "number"), rapid.Uint64().Draw(t, "session"), rapid.Uint64().Draw(t, "sequence"), rapid.IntRange(0, 1<<30).Draw(t, "index"), *genOperation(t)}
		b := AppendWaiter(nil, &want)
		got, err := DecodeWaiter(b)
		if err != nil {
			t.Fatal(err)
		}
		clear(b)
		if err := sameState(&State{Waiters: []Waiter{*got}}, &State{Waiters: []Waiter{want}}); err != nil {
			t.Fatal(err)
		}
	})
	for name, b := range map[string][]byte{"nothing": nil, "no operation": {8, 1}, "two operations": {6<<3 | 2, 0, 6<<3 | 2, 0}, "half": {6<<3 | 2, 5}} {
		if p, err := DecodeWaiter(b); err == nil {
			t.Errorf("%s was decoded as %+v", name, p)
		}
	}
}

// A recorder to which statements were added, and which was truncated in between, encodes the
// same operation as EncodeOperation with the remaining statements.
func TestRecordingsAreEncodedLikeOperations(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var r Recorder
		var statements []Statement
		type mark struct {
			Mark
			n int
		}
		marks := []mark{{r.Mark(), 0}}
		for _, o := range genOperations(t) {
			switch rapid.IntRange(0, 3).Draw(t, "what") {
			case 0:
				marks = append(marks, mark{r.Mark(), len(statements)})
			case 1:
				i := rapid.IntRange(0, len(marks)-1).Draw(t, "back to")
				r.Truncate(marks[i].Mark)
				marks, statements = marks[:i+1], statements[:marks[i].n]
			}
			for i := range o.Statements {
				s := o.Statements[i]
				r.Add(&s)
				statements = append(statements, s)
			}
			if r.Len() != len(statements) {
				t.Fatalf("there are %d statements, want %d", r.Len(), len(statements))
			}
		}
		op := genOperation(t)
		op.Vacuum, op.Statements = false, nil
		got := r.Encode(op)
		op.Statements = statements
		for name, e := range map[string]*EncodedOperation{"recorded": got, "encoded": EncodeOperation(op)} {
			// Another operation before it changes the numbers of its texts.
			cmd := EncodeEntry(1, 2, 0, []*EncodedOperation{EncodeOperation(sample()[0]), e})
			var d Decoder
			entry, err := d.Decode(cmd)
			if err != nil {
				t.Fatal(err)
			}
			if err := same(entry, 1, 2, []*Operation{sample()[0], op}); err != nil {
				t.Fatal(name, err)
			}
		}
		seen := map[string]bool{}
		for _, text := range got.Texts {
			if seen[text] {
				t.Fatalf("the text %q is there twice", text)
			}
			seen[text] = true
		}
	})
}

// A statement is refused if the size of the recording exceeds the bound of an entry, so this
// size must be an upper bound.
func TestTheSizeOfARecordingIsAnUpperBound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var r Recorder
		for _, o := range genOperations(t) {
			for i := range o.Statements {
				r.Add(&o.Statements[i])
			}
		}
		op := &Operation{StampMS: math.MinInt64, Seed: Seed{0: 255, 31: 255}, Settings: KnownSettings, LastInsertID: math.MinInt64, Changes: math.MinInt64, MaxSteps: math.MaxUint64, Origin: &Origin{math.MaxUint64, math.MaxUint64, true},
			Lease: &Lease{Under: math.MaxUint64, Transaction: true, Base: math.MaxUint64, Keep: true, Checksum: math.MaxUint64}}
		e := r.Encode(op)
		if e.Size() > r.Size() {
			t.Fatalf("the operation has %d bytes, the size of the recorder is %d", e.Size(), r.Size())
		}
		if n := len(EncodeEntry(math.MaxUint64, math.MaxUint64, 0, []*EncodedOperation{e})); n > r.Size()+64 {
			t.Fatalf("the entry has %d bytes, the size of the recorder is %d", n, r.Size())
		}
	})
}

func TestSeedsOfStatementsDiffer(t *testing.T) {
	seen := map[Seed]bool{}
	for i := range 100 {
		seed := Seed{byte(i)}
		for n := range uint64(100) {
			seen[seed.Of(n)] = true
		}
	}
	if len(seen) != 100*100 {
		t.Errorf("there are %d seeds for %d statements", len(seen), 100*100)
	}
}

func TestChecksumsDifferForDifferentResults(t *testing.T) {
	sums := map[Checksum]bool{}
	for _, results := range [][][3]int64{{}, {{0, 0, 0}}, {{0, 0, 0}, {0, 0, 0}}, {{0, 1, 0}}, {{0, 0, 1}}, {{1, 0, 0}}, {{0, 1, 1}, {0, 1, 2}}, {{0, 1, 2}, {0, 1, 1}}, {{19, -1, math.MinInt64}}} {
		var c Checksum
		for _, r := range results {
			c.Add(int(r[0]), r[1], r[2])
		}
		sums[c] = true
	}
	if len(sums) != 7 { // results without changes have the same checksum
		t.Errorf("there are %d checksums, want 7", len(sums))
	}
}
