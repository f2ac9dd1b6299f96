package statemachine

import "math"

// minFree is the free space, in bytes, under which a full disk is believed.
const minFree = 16 << 20

// FreeSpace is not asked for on this system.
func FreeSpace(string) (int64, error) { return math.MaxInt64, nil }
