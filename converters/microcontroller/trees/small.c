/* A forest from tables, the small form. First every comparison is answered, a bit each: the keys of a form ascend, so that the
   answers are zeros up to the first key that is not below the input's, and ones from there. Then every tree is walked by these
   bits: a node tells its bit and how many nodes its left subtree has, which follows it; `count` nodes are left below. */
static void @NAME@(const uint32_t *t, const @X@ *x, uint32_t *bits, @S@ *s@HAS_PARAMETER@)
{
    const @FORM@ *form = (const @FORM@ *)(const void *)(t + t[3]);
    const @KEY@ *key = (const @KEY@ *)(const void *)(t + t[4]);
    const @TREE@ *tree = (const @TREE@ *)(const void *)(t + t[5]);
    const @QUESTION@ *question = (const @QUESTION@ *)(const void *)(t + t[6]);
@SIZES@
@LEAVES@
    uint32_t bit = 0, forms, trees;
    for (uint32_t i = 0; i < t[2]; i++) {
        bits[i] = 0;
    }
    for (forms = t[0]; forms != 0; forms--, form += 2) {
        uint32_t low = 0, high = form[1];
        @KEY@ value = @KEY_OF@;
@NAN@
        while (low < high) {
            uint32_t middle = (low + high) >> 1;
            if (key[middle] < value) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        key += form[1];
        low += bit;
        bit += form[1];
        while (low < bit) {
            uint32_t word = low >> 5, end = (word + 1) << 5;
            uint32_t ones = UINT32_MAX << (low & 31u);
            if (end > bit) {
                end = bit;
                ones &= UINT32_MAX >> (-bit & 31u);
            }
            bits[word] |= ones;
            low = end;
        }
    }
@COMPOSED@
    for (trees = t[1]; trees != 0; trees--, tree += @TREE_STEP@) {
        uint32_t count = tree[0];
        const @QUESTION@ *node = question;
@START@
        while (count != 0) {
            uint32_t q = *node++@SPLIT@;
            if (((bits[q >> 5] >> (q & 31u)) & 1u) != 0) {
                count = left;
            } else {
                node += left;
@SKIP@
                leaf += left + 1;
                count -= left + 1;
            }
        }
@VOTE@
        question += tree[0];
@NEXT@
    }
}
