/* A forest from tables, the small form. First every comparison is answered, a bit each: the keys of a form ascend, so that the
   answers are zeros up to the first key that is not below the input's, and ones from there. Then every tree is walked by these
   bits: a node tells its bit and how many leaves its left subtree has, which follows it; `count` nodes are below. */
static void @NAME@(const uint32_t *t, const @X@ *x, uint32_t *bits, @S@ *s@HAS_PARAMETER@)
{
    const @FORM@ *form = (const @FORM@ *)(const void *)(t + t[3]);
    const @KEY@ *key = (const @KEY@ *)(const void *)(t + t[4]);
    const @TREE@ *tree = (const @TREE@ *)(const void *)(t + t[5]);
    const @QUESTION@ *question = (const @QUESTION@ *)(const void *)(t + t[6]);
@SIZES@
@LEAVES@
    uint32_t bit = 0;
    for (uint32_t i = 0; i < t[2]; i++) {
        bits[i] = 0;
    }
    for (uint32_t forms = t[0]; forms != 0; forms--, form += 2) {
        const @KEY@ *from = key;
        uint32_t n = form[1], begin;
        @KEY@ sought = @KEY_OF@;
@NAN@
        while (n > 1) {
            const uint32_t half = n >> 1;
            const @KEY@ *const middle = from + half;
            if (middle[-1] < sought) {
                from = middle;
            }
            n -= half;
        }
        begin = bit + (uint32_t)(from - key) + (*from < sought ? 1u : 0u);
        key += form[1];
        bit += form[1];
        while (begin < bit) {
            const uint32_t word = begin >> 5, next = (word + 1) << 5;
            uint32_t ones = UINT32_MAX >> (begin & 31u);
            if (next > bit) {
                ones &= UINT32_MAX << (-bit & 31u);
            }
            bits[word] |= ones;
            begin = next;
        }
    }
@COMPOSED@
    for (uint32_t trees = t[1]; trees != 0; trees--, tree += @TREE_STEP@) {
        uint32_t count = tree[0];
        const @QUESTION@ *node = question;
        leaf = leaves;
@START@
        while (count != 0) {
@NODE@
            const int yes = ((bits[@WORD@] << (@BIT@)) & 0x80000000u) != 0;
@ESCAPED@
            if (yes) {
                node++;
@LEFT@
                count = leaves_left - 1;
            } else {
                node += leaves_left;
@RIGHT@
                leaf += leaves_left;
                count -= leaves_left;
            }
        }
@VOTE@
        question += tree[@WORDS@];
        leaves += tree[0] + 1u;
@NEXT@
    }
}
