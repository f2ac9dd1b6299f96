package process

import (
	"io"
	"net"
	"testing"
)

func TestLinkStates(t *testing.T) {
	target, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	dial := func(l *link) net.Conn {
		c, err := net.Dial("tcp", l.listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	send := func(c net.Conn, text string) {
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
	}
	l := newLink(t, 1, 2, target.Addr().String())
	here := dial(l)
	defer here.Close()
	there, err := target.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	got := make(chan string)
	go func() {
		defer close(got)
		for buffer := make([]byte, 1); ; {
			if _, err := io.ReadFull(there, buffer); err != nil {
				return
			}
			got <- string(buffer)
		}
	}()
	send(here, "a")
	if text := <-got; text != "a" {
		t.Errorf("got %q through a link that is up, want a", text)
	}
	l.set(LinkHeld)
	send(here, "b")
	select {
	case text := <-got:
		t.Errorf("got %q through a link that is held", text)
	default:
	}
	l.set(LinkUp)
	if text := <-got; text != "b" {
		t.Errorf("got %q after it was held, want b", text)
	}
	l.set(LinkDown)
	if text, ok := <-got; ok {
		t.Errorf("got %q through a link that is down", text)
	}
	late := dial(l)
	defer late.Close()
	if n, err := late.Read(make([]byte, 1)); err == nil {
		t.Errorf("got %d bytes through a link that was down before", n)
	}
	l.set(LinkUp)
	again := dial(l)
	defer again.Close()
	there, err = target.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	send(again, "c")
	buffer := make([]byte, 1)
	if _, err := io.ReadFull(there, buffer); err != nil || string(buffer) != "c" {
		t.Errorf("got %q, %v through a link that is up again, want c", buffer, err)
	}
}
