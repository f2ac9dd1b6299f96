package consistency_test

import "slices"

// A graph has an edge for each pair of transactions of which one must have happened
// before the other.
type graph struct {
	out [][]edge
}

type edge struct {
	from, to int
	why      string
}

// grow adds nodes, and returns the first.
func (g *graph) grow(n int) int {
	first := len(g.out)
	g.out = append(g.out, make([][]edge, n)...)
	return first
}

func (g *graph) add(from, to int, why string) {
	if from != to {
		g.out[from] = append(g.out[from], edge{from, to, why})
	}
}

// cycles returns a short cycle of each strongly connected component that has
// one.
func (g *graph) cycles() (found [][]edge) {
	for _, component := range g.components() {
		if len(component) > 1 {
			found = append(found, g.shortest(component))
		}
	}
	return found
}

// components returns the strongly connected components, by Tarjan's algorithm. It
// does not recurse, because the chains of moments are long.
func (g *graph) components() (all [][]int) {
	const unseen = 0
	index, low := make([]int, len(g.out)), make([]int, len(g.out))
	on := make([]bool, len(g.out))
	var stack []int
	type frame struct{ node, next int }
	count := 0
	for root := range g.out {
		if index[root] != unseen {
			continue
		}
		frames := []frame{{root, 0}}
		for len(frames) > 0 {
			f := &frames[len(frames)-1]
			v := f.node
			if f.next == 0 {
				count++
				index[v], low[v] = count, count
				stack = append(stack, v)
				on[v] = true
			} else if child := g.out[v][f.next-1].to; on[child] {
				low[v] = min(low[v], low[child])
			}
			descended := false
			for f.next < len(g.out[v]) {
				child := g.out[v][f.next].to
				f.next++
				if index[child] == unseen {
					frames = append(frames, frame{child, 0})
					descended = true
					break
				}
				if on[child] {
					low[v] = min(low[v], index[child])
				}
			}
			if descended {
				continue
			}
			if low[v] == index[v] {
				var component []int
				for {
					top := stack[len(stack)-1]
					stack = stack[:len(stack)-1]
					on[top] = false
					component = append(component, top)
					if top == v {
						break
					}
				}
				all = append(all, component)
			}
			frames = frames[:len(frames)-1]
		}
	}
	return all
}

// shortest returns a short cycle inside a component.
func (g *graph) shortest(component []int) (best []edge) {
	inside := make(map[int]bool, len(component))
	for _, v := range component {
		inside[v] = true
	}
	slices.Sort(component) // transactions before moments
	for _, start := range component[:min(len(component), 50)] {
		via := map[int]edge{}
		queue := []int{start}
		for back := false; !back; _, back = via[start] {
			v := queue[0]
			queue = queue[1:]
			for _, e := range g.out[v] {
				if _, been := via[e.to]; been || !inside[e.to] {
					continue
				}
				via[e.to] = e
				queue = append(queue, e.to)
			}
		}
		var cycle []edge
		for at := start; ; {
			e := via[at]
			cycle = append(cycle, e)
			if at = e.from; at == start {
				break
			}
		}
		slices.Reverse(cycle)
		if best == nil || len(cycle) < len(best) {
			best = cycle
		}
	}
	return best
}
