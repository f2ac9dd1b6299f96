//go:build !linux

package process

import (
	"errors"
	"testing"

	"github.com/hiqlite/hiqlite"
)

// A VirtualNetwork exists on Linux only.
type VirtualNetwork struct{}

// NewVirtualNetwork returns an error.
func NewVirtualNetwork(testing.TB, int) (*VirtualNetwork, error) {
	return nil, errors.New("it needs the network namespaces of Linux")
}

func (*VirtualNetwork) Members() []hiqlite.Member { return nil }
func (*VirtualNetwork) Command(uint64) []string   { return nil }
func (*VirtualNetwork) Set(Conditions)            {}
func (*VirtualNetwork) Cut(uint64, bool)          {}
