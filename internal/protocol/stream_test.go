package protocol

import (
	"bytes"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hiqlite/hiqlite/internal/node"
)

var testLimits = StreamLimits{MaxFrame: 1 << 20, PingAfter: time.Second, PingTimeout: 2 * time.Second, WriteTimeout: 5 * time.Second}

// pipe returns two connected Streams.
func pipe(t *testing.T) (a, b *Stream) {
	x, y := net.Pipe()
	t.Cleanup(func() { x.Close(); y.Close() })
	return NewStream(x, nil, testLimits), NewStream(y, nil, testLimits)
}

// frame returns a frame of messages, as an Outbox makes it.
func frame(content string) []byte { return append(make([]byte, HeadBytes), content...) }

func TestStream(t *testing.T) {
	a, b := pipe(t)
	large := strings.Repeat("x", 300_000)
	sent := make(chan error, 1)
	go func() {
		for _, content := range []string{"one", "", large, "two"} {
			if err := a.Send(frame(content)); err != nil {
				sent <- err
				return
			}
		}
		sent <- a.SendEnd(EncodeError(node.ErrClosed, nil, false))
	}()
	for _, want := range []string{"one", "", large, "two"} {
		if got, err := b.Receive(); err != nil || string(got) != want {
			t.Fatalf("%d bytes, %v; want %d", len(got), err, len(want))
		}
	}
	if _, err := b.Receive(); !errors.Is(err, node.ErrClosed) {
		t.Errorf("the end: %v", err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

// Both sides of an idle Stream know that the other one is there. One that falls silent is
// given up.
func TestStreamIsAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pipe(t)
		b.limits.PingAfter *= 2 // a pipe has no buffer, so only one side may ping at a time
		for _, s := range []*Stream{a, b} {
			go s.Receive() // until the pipe is closed
		}
		time.Sleep(time.Hour)
		if err := a.Send(frame("still there")); err != nil {
			t.Errorf("after an idle hour: %v", err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		x, y := net.Pipe()
		defer y.Close()
		go io.Copy(io.Discard, y) // takes everything, and answers nothing
		began := time.Now()
		_, err := NewStream(x, nil, testLimits).Receive()
		if took := time.Since(began); !errors.Is(err, errSilent) || took != 3*time.Second {
			t.Errorf("%v after %v", err, took)
		}
		x.Close()
	})
}

// A side that takes nothing is given up. One that takes something is not.
func TestStreamWriteTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, y := net.Pipe()
		defer y.Close()
		defer x.Close()
		s := NewStream(x, nil, testLimits)
		go func() {
			for range 10 {
				time.Sleep(4 * time.Second)
				io.CopyN(io.Discard, y, writeStep)
			}
		}()
		if err := s.Send(frame(strings.Repeat("x", 10*writeStep-HeadBytes))); err != nil {
			t.Errorf("to a slow reader: %v", err)
		}
		if err := s.Send(frame("x")); err == nil {
			t.Error("a frame that nobody takes was sent")
		}
	})
}

// Frames that are not of the protocol are refused. The memory that a frame takes depends
// on what has come of it.
func TestStreamBadFrames(t *testing.T) {
	for name, x := range map[string]struct {
		input []byte
		want  string
	}{
		"too large":       {[]byte{0, 0, 0x10, 0, 1}, "larger than"},
		"the largest":     {[]byte{0, 0xff, 0xff, 0xff, 0xff}, "larger than"},
		"unknown kind":    {[]byte{9, 0, 0, 0, 0}, "kind 9"},
		"a long ping":     {[]byte{1, 0, 0, 0, 1, 0}, "kind 1"},
		"a long pong":     {[]byte{2, 0xff, 0, 0, 0}, "kind 2"},
		"a long end":      {[]byte{3, 0, 1, 0, 1}, "kind 3"},
		"a malformed end": {[]byte{3, 0, 0, 0, 1, 0xff}, "proto"},
		"half a head":     {[]byte{0, 0}, "unexpected EOF"},
		"half a frame":    {[]byte{0, 0, 0, 0, 9, 'x'}, "unexpected EOF"},
		"nothing":         {nil, "EOF"},
	} {
		if _, err := receive(x.input); err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: %v, want %q", name, err, x.want)
		}
	}
	lying := []byte{0, 0, 0x10, 0, 0}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 50 {
		receive(lying)
	}
	runtime.ReadMemStats(&after)
	if each := (after.TotalAlloc - before.TotalAlloc) / 50; each > 200<<10 {
		t.Errorf("a head takes %d bytes", each)
	}
}

// receive receives from a connection that has this input and then ends.
func receive(input []byte) ([]byte, error) {
	s := NewStream(closedConn{}, bytes.NewReader(input), testLimits)
	return s.Receive()
}

// closedConn is a connection that the other side has closed.
type closedConn struct{ net.Conn }

func (closedConn) SetReadDeadline(time.Time) error  { return nil }
func (closedConn) SetWriteDeadline(time.Time) error { return nil }
func (closedConn) Read([]byte) (int, error)         { return 0, io.EOF }
func (closedConn) Write(p []byte) (int, error)      { return len(p), nil }

// FuzzStream receives arbitrary bytes, until they end.
func FuzzStream(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 1, 'x', 1, 0, 0, 0, 0, 2, 0, 0, 0, 0, 3, 0, 0, 0, 0})
	f.Add([]byte{3, 0, 0, 0, 2, 0x0a, 0})
	f.Fuzz(func(t *testing.T, input []byte) {
		s := NewStream(closedConn{}, bytes.NewReader(input), testLimits)
		for total := 0; ; {
			b, err := s.Receive()
			if err != nil {
				return
			}
			if total += HeadBytes + len(b); total > len(input) {
				t.Fatalf("%d bytes of %d", total, len(input))
			}
		}
	})
}

// outbox returns an Outbox of texts, and a channel of the frames that it sends.
func outbox(t *testing.T) (o *Outbox[string], frames chan string, finish chan struct{}) {
	o = NewOutbox(func(b []byte, m string) ([]byte, error) {
		if m == "bad" {
			return nil, errMessage
		}
		return append(b, m...), nil
	})
	frames, finish = make(chan string), make(chan struct{})
	done := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		o.Run(done, finish, func(frame []byte) error {
			select {
			case frames <- string(frame[HeadBytes:]):
				return nil
			case <-done:
				return io.EOF
			}
		})
	}()
	t.Cleanup(func() { close(done); <-ended })
	return o, frames, finish
}

// Messages that wait are sent together, and in their order.
func TestOutbox(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, frames, finish := outbox(t)
		never := make(chan struct{})
		add := func(m string) {
			if err := o.Add(m, never); err != nil {
				t.Fatal(err)
			}
		}
		add("a")
		synctest.Wait() // the goroutine sends it
		add("b")
		if err := o.Add("bad", never); !errors.Is(err, errMessage) {
			t.Errorf("a message that cannot be encoded: %v", err)
		}
		add("c")
		for _, want := range []string{"a", "bc"} {
			if got := <-frames; got != want {
				t.Errorf("%q was sent, want %q", got, want)
			}
		}
		o.Hold()
		add("d")
		add("e")
		synctest.Wait()
		select {
		case got := <-frames:
			t.Errorf("%q was sent while the Outbox was held", got)
		default:
		}
		o.Release(2)
		if got := <-frames; got != "de" {
			t.Errorf("%q was sent after the release", got)
		}
		o.Release(5) // those that are due never come
		add("f")
		if got := <-frames; got != "f" {
			t.Errorf("%q was sent while others were due", got)
		}
		add("g")
		synctest.Wait()
		add("h")
		close(finish)
		for _, want := range []string{"g", "h"} {
			if got := <-frames; got != want {
				t.Errorf("%q was sent at the end, want %q", got, want)
			}
		}
	})
}

// What waits is bounded, and the wait for room ends with the stream.
func TestOutboxIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, frames, _ := outbox(t)
		done := make(chan struct{})
		large := strings.Repeat("x", LinkBytes/2+1)
		if err := errors.Join(o.Add(large, done)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // the goroutine sends it
		if err := o.Add(large, done); err != nil {
			t.Fatal(err)
		}
		if added, err := o.TryAdd(large); added || err != nil {
			t.Errorf("there is room for more: %v, %v", added, err)
		}
		results := make(chan error, 2)
		go func() { results <- o.Add(large, nil) }()
		ended := make(chan struct{})
		go func() { results <- o.Add(large, ended) }()
		synctest.Wait()
		close(ended)
		if err := <-results; !errors.Is(err, ErrOutboxEnded) {
			t.Errorf("the end: %v", err)
		}
		for range 3 {
			if got := <-frames; got != large {
				t.Errorf("%d bytes were sent", len(got))
			}
		}
		if err := <-results; err != nil {
			t.Error(err)
		}
		larger := strings.Repeat("x", 2*LinkBytes)
		if err := o.Add(larger, done); err != nil {
			t.Error(err)
		}
		if got := <-frames; got != larger {
			t.Errorf("%d bytes were sent", len(got))
		}
	})
}
