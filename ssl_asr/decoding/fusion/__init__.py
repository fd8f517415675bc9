"""Shallow fusion: language models, lexicons and hotwords behind one interface.

A search ranks a hypothesis by the score of the acoustic model plus the scores of several automata. An automaton reads
the labels of the hypothesis one by one. Its key is all that it remembers of the labels so far::

    labels           t          h          e         " "        c
    key      k0 ---------> k1 -------> k2 -------> k3 -------> k4 -------> k5       begin, advance(key, label)
    score         r(k0,t)    r(k1,h)    r(k2,e)   r(k3," ")   r(k4,c)    end(k5)    rows(keys), end(key)

    fused(l_1 ... l_n) = sum over automata:  rows(k_0)[l_1] + ... + rows(k_{n-1})[l_n] + end(k_n)

The row of a key holds the score of every label of the vocabulary; minus infinity forbids a label.

N-gram models, lexicons and hotwords have a table: tensors from which `tables.Fusion` takes the scores of all candidates
of all beams at once, on the device of the search. Tables are kept between utterances. Neural language models, KenLM
binaries and automata of other packages have none. Their keys are hashable, so `reached` numbers them as searches reach
them, and asks the automata on the host: for whole rows, which it keeps, or for the candidates of each step if the
vocabulary is large.

Labels are spelled as text. A space is a word boundary: the label ``" "`` of a character vocabulary, or the first
character of ``" the"`` in a vocabulary of word pieces.

- `automata`: the interface, and the automata that score labels one by one.
- `words`: language models and lexicons over words.
- `hotwords`: bonuses for expected phrases.
- `state_tables`: the interface of tables; `label_tables`, `word_tables`, `hotword_tables`: the tables.
- `label_arcs`: next states of labels that are spelled as text, which words and hotwords share.
- `reached`: automata without a table.
- `tables`: several automata as one.
- `scorers`: several automata as a `Scorer` of an autoregressive beam search.
- `options`: the settings of all of them, which decoders inherit.
"""
