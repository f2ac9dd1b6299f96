package durable

import "math"

// Space reports a volume that never fills up, because the free space is not
// looked at on Windows.
func Space(string) (free, total int64, err error) { return math.MaxInt64, math.MaxInt64, nil }
