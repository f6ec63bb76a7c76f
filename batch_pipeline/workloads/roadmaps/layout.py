"""Which category and subcategory a topic of a drawn roadmap belongs to.

What belongs here: geometry and edges of nodes. What does not: files and texts (folder.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

# A free label heads what is drawn below it, up to this far (a subtopic is about 50 high).
_LABEL_REACH = 300.0


@dataclass(frozen=True, slots=True)
class Node:
    """One drawn node; lengths in the drawing's pixels, y grows downwards."""

    id: str
    type: str
    label: str
    x: float
    y: float
    width: float
    height: float

    @property
    def center(self) -> tuple[float, float]:
        """The middle of its box."""
        return self.x + self.width / 2, self.y + self.height / 2

    def holds(self, other: Node) -> bool:
        """Whether the middle of `other` lies in this node's box."""
        x, y = other.center
        return self.x <= x <= self.x + self.width and self.y <= y <= self.y + self.height


@dataclass(frozen=True, slots=True)
class Place:
    """Where a topic belongs; empty texts where the drawing does not say."""

    category: str
    subcategory: str


class Layout:
    """The hierarchy of a drawing.

    Edges are followed where there are any, for drawn boxes can overlap; in many published roadmaps
    nearly all topics have none, so the rest is geometry.

    - The parent of a subtopic is the topic its edges lead up to, else the closest topic at or above
      it in the same smallest section box.
    - The category is a label with an edge to the topic or to its parent. Else it is the heading of
      the smallest box around the topic that has one: the section's own label, the topmost label
      drawn directly in it, or the label of a topic with an edge to the section. Then the parent's
      label is the subcategory.
    - Else the category is the parent's label, else the closest label above in the same column, else
      for a topic that has subtopics the topic itself.
    """

    def __init__(self, nodes: Sequence[Node], edges: Iterable[tuple[str, str]]) -> None:
        """Read the drawing; `edges` are (source, target) ids."""
        self._nodes = {node.id: node for node in nodes}
        self._topics = [node for node in nodes if node.type == "topic"]
        self._labels = [node for node in nodes if node.type == "label" and node.label]
        self._sections = sorted(
            (node for node in nodes if node.type == "section"),
            key=lambda box: box.width * box.height,
        )
        self._sources: dict[str, list[Node]] = {}
        for source, target in edges:
            if source in self._nodes:
                self._sources.setdefault(target, []).append(self._nodes[source])
        self._headings = {section.id: self._heading(section) for section in self._sections}
        self._parents = {node.id: self._parent(node) for node in nodes if node.type == "subtopic"}
        self._heads = {parent.id for parent in self._parents.values() if parent}

    def is_row(self, node: Node, content_ids: Collection[str]) -> bool:
        """Whether a node is a topic to enrich, not only the heading of its subtopics."""
        if node.type == "subtopic":
            return True
        return node.type == "topic" and (node.id in content_ids or node.id not in self._heads)

    def place(self, node: Node) -> Place:
        """Category and subcategory of a topic or subtopic."""
        parent = self._parents.get(node.id)
        heading = self._edge_label(node) or (self._edge_label(parent) if parent else "")
        if not heading:
            boxes = (box for box in self._sections if box.holds(node))
            heading = next((self._headings[box.id] for box in boxes if self._headings[box.id]), "")
        if heading:
            return Place(heading, parent.label if parent else "")
        if parent:
            return Place(parent.label, "")
        if label := self._label_above(node):
            return Place(label.label, "")
        return Place(node.label if node.id in self._heads else "", "")

    def _edge_label(self, node: Node) -> str:
        sources = self._sources.get(node.id, [])
        return next((source.label for source in sources if source.type == "label"), "")

    def _section_of(self, node: Node) -> Node | None:
        return next((box for box in self._sections if box is not node and box.holds(node)), None)

    def _heading(self, section: Node) -> str:
        if section.label:
            return section.label
        inside = [label for label in self._labels if self._section_of(label) is section]
        if inside:
            return min(inside, key=lambda label: (label.y, label.x)).label
        sources = self._sources.get(section.id, [])
        return next((source.label for source in sources if source.type == "topic"), "")

    def _parent(self, node: Node) -> Node | None:
        seen, waiting = {node.id}, [node.id]
        while waiting:
            for source in self._sources.get(waiting.pop(0), []):
                if source.type == "topic":
                    return source
                if source.type == "subtopic" and source.id not in seen:
                    seen.add(source.id)
                    waiting.append(source.id)
        box = self._section_of(node)
        if box is None or self._edge_label(node):
            return None
        x, y = node.center
        above = [
            topic
            for topic in self._topics
            if topic.center[1] <= y + node.height / 2 and self._section_of(topic) is box
        ]
        return min(above, key=lambda t: (abs(y - t.center[1]), abs(x - t.center[0])), default=None)

    def _label_above(self, node: Node) -> Node | None:
        near = [
            label
            for label in self._labels
            if 0 <= node.y - label.y <= _LABEL_REACH
            and label.x <= node.x + node.width
            and node.x <= label.x + label.width
        ]
        return max(near, key=lambda label: label.y, default=None)
