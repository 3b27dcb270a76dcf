"""Every operation that the evaluator knows, by its name in the program. `const`, `cond` and `while_loop` are the walker's own."""

from collections.abc import Mapping

from modelfleet.converters.mil_evaluator.activation import ACTIVATIONS
from modelfleet.converters.mil_evaluator.blocks import BLOCKS
from modelfleet.converters.mil_evaluator.boxes import BOXES
from modelfleet.converters.mil_evaluator.call import Evaluate
from modelfleet.converters.mil_evaluator.constexpr import CONSTEXPR
from modelfleet.converters.mil_evaluator.convolution import CONVOLUTION
from modelfleet.converters.mil_evaluator.elementwise import BINARY, UNARY
from modelfleet.converters.mil_evaluator.indexing import INDEXING
from modelfleet.converters.mil_evaluator.linear import LINEAR
from modelfleet.converters.mil_evaluator.lists import LISTS
from modelfleet.converters.mil_evaluator.making import MAKING
from modelfleet.converters.mil_evaluator.normalization import NORMALIZATION
from modelfleet.converters.mil_evaluator.pooling import POOLING
from modelfleet.converters.mil_evaluator.recurrent import RECURRENT
from modelfleet.converters.mil_evaluator.reduction import REDUCTION
from modelfleet.converters.mil_evaluator.resizing import RESIZING
from modelfleet.converters.mil_evaluator.sampling import SAMPLING
from modelfleet.converters.mil_evaluator.shapes import SHAPES
from modelfleet.converters.mil_evaluator.slicing import SLICING

OPERATIONS: Mapping[str, Evaluate] = {
    **UNARY,
    **BINARY,
    **ACTIVATIONS,
    **BLOCKS,
    **BOXES,
    **CONSTEXPR,
    **CONVOLUTION,
    **INDEXING,
    **LINEAR,
    **LISTS,
    **MAKING,
    **NORMALIZATION,
    **POOLING,
    **RECURRENT,
    **REDUCTION,
    **RESIZING,
    **SAMPLING,
    **SHAPES,
    **SLICING,
}
