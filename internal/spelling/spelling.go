// Package spelling finds the name that somebody who mistyped it may have meant.
package spelling

import "strings"

// Nearest returns the name of known that differs from name in the fewest letters,
// whatever their case. Of several it returns the one that has the longest prefix in
// common with name, and of these the first one. It returns "" if known is empty.
func Nearest(name string, known []string) string {
	lower := strings.ToLower(name)
	best, least, longest := "", -1, 0
	for _, k := range known {
		candidate := strings.ToLower(k)
		common := 0
		for common < min(len(lower), len(candidate)) && lower[common] == candidate[common] {
			common++
		}
		d := distance(lower, candidate)
		if least < 0 || d < least || d == least && common > longest {
			best, least, longest = k, d, common
		}
	}
	return best
}

// distance returns the Levenshtein distance of a and b, in bytes.
func distance(a, b string) int {
	const most = 40 // bytes of a name that are compared; all known names are shorter
	a, b = a[:min(len(a), most)], b[:min(len(b), most)]
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
