// Package testrun has what tests of all packages agree on: how long they wait for
// something, and how much they do.
//
// go test ./... runs each test in its short form, which takes seconds. Some tests
// also have a long form: more rounds, more seeds, more faults. It runs when the
// environment has HIQLITE_LONG=1, as in .ci/run. Under the race detector, which
// makes the translated C of SQLite more than ten times slower, they do less.
package testrun

import (
	"context"
	"flag"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"
)

// Patience bounds how long a test waits for what should take seconds at most: on
// a busy machine it may take much longer.
const Patience = 2 * time.Minute

// Long reports whether tests run in their long form.
func Long() bool { return os.Getenv("HIQLITE_LONG") != "" }

// Rounds returns how often a test does something: short times by default, long
// times in its long form. Under the race detector it is a tenth of that, but
// at least once.
func Rounds(short, long int) int {
	n := short
	if Long() {
		n = long
	}
	if Race {
		n = max(1, n/10)
	}
	return n
}

// Length is Rounds for a time: how long a test goes on. The race detector does
// not shorten it.
func Length(short, long time.Duration) time.Duration {
	if Long() {
		return long
	}
	return short
}

// Reasons for SkipUnderRace.
const (
	OneGoroutine   = "it computes in one goroutine, where nothing can race, and the race detector makes it ten times slower"
	MeasuresMemory = "it measures memory, of which the race detector needs more itself"
)

// SkipUnderRace skips a test when the race detector is on.
func SkipUnderRace(t testing.TB, reason string) {
	t.Helper()
	if Race {
		t.Skip("not under the race detector: " + reason)
	}
}

// ParallelPerCPU is how many tests run at a time, per CPU, in the packages that call
// MoreParallel.
const ParallelPerCPU = 3

// MoreParallel raises the number of tests that run at a time, for packages whose
// tests wait for elections and disks most of the time. The flag -parallel wins. It
// is called by TestMain.
func MoreParallel() {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		flag.Set("test.parallel", strconv.Itoa(ParallelPerCPU*runtime.GOMAXPROCS(0)))
	}
}

// Context returns a context that ends after Patience, or with the test.
func Context(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	t.Cleanup(cancel)
	return ctx
}

// WaitFor calls holds until it returns true. It fails the test after Patience.
func WaitFor(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(Patience); !holds(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s", Patience, what)
		}
		time.Sleep(time.Millisecond) // until the next look
	}
}
