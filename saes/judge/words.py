"""A small list of common English words by part of speech, for labels that need no download.

Only words that are nearly always of one class are here: "work", "that" and "like" are missing because they are of several. A class
is told from the list alone, so it is about the word, not about its use in a sentence.
"""

from __future__ import annotations

NOUN = """
people government world country nation congress year day time man men woman women child children family war peace money water
sea ship boat captain whale fish crew deck sailor ocean island land street house room door table book story king president law
system school city state tax budget economy health education energy oil army friend enemy father mother brother son daughter head
eye eyes hand arm foot body blood heart soul god devil morning night century freedom justice science history language music food
""".split()
VERB = """
is are was were be been am have has had do does did go goes went gone make makes made take took taken give gave given get got see
saw seen know knew known think thought say said tell told ask asked become became keep kept bring brought build built buy bought
send sent pay paid meet met grow grew grown choose chose begin began begun believe believed provide provided include included create
created require required protect protected achieve achieve allow allowed seem seemed remain remained arise ensure ensured
""".split()
ADJECTIVE = """
good great new old large big small high low young strong weak poor rich free true false happy sad hot cold warm dark bright deep
wide narrow heavy strange human social political economic military national federal foreign domestic nuclear public important
necessary possible impossible responsible beautiful terrible ancient modern entire whole various certain special common civil
""".split()
FUNCTION = """
the of to and a an in for on with as at by from into upon or but if because while although during between among without within
against through toward towards under over about after before since until he she it they we you him her them us his its their our
your my me this these those which who whom whose not nor
""".split()

CLASSES = {"noun": NOUN, "verb": VERB, "adjective": ADJECTIVE, "function word": FUNCTION}
"""Words by class; a word that is in two lists is a mistake, which a test would find."""
