"""The prompts of LongBench's data sets, in words of our own: what is asked for is LongBench's.

`{context}` and `{input}` are the fields of the same names. The instruction stands before the long
text and, where there is a question, again behind it, because the middle may be cut out.
"""

from __future__ import annotations

_PASSAGES = (
    "Use the passages below to answer a question. Reply with the answer alone, without a sentence "
    "around it.\n\n{context}\n\n"
    "Reply with the answer alone, as the passages give it.\n\nQuestion: {input}\nAnswer:"
)

PROMPTS = {
    "narrativeqa": (
        "Below is a story: a book or the script of a film. Read it, then answer the question in as "
        "few words as you can, a phrase if that is enough. Explain nothing.\n\n"
        "Story:\n{context}\n\n"
        "Answer the question about the story in as few words as you can.\n\n"
        "Question: {input}\nAnswer:"
    ),
    "qasper": (
        "Below is a scientific article. Answer the question about it with a short phrase or one "
        'sentence. For a question of yes or no, write "yes", "no" or "unanswerable"; write '
        '"unanswerable" also where the article does not tell. Explain nothing.\n\n'
        "Article:\n{context}\n\n"
        'Answer briefly from the article above; "unanswerable" if it does not tell, and "yes" or '
        '"no" where that is what is asked.\n\n'
        "Question: {input}\nAnswer:"
    ),
    "multifieldqa_en": (
        "Read this text, then answer a short question about it.\n\n{context}\n\n"
        "Answer from the text above, with the answer alone.\n\nQuestion: {input}\nAnswer:"
    ),
    "hotpotqa": _PASSAGES,
    "2wikimqa": _PASSAGES,
    "musique": _PASSAGES,
    "gov_report": (
        "Summarize this report of a government agency on one page.\n\n"
        "Report:\n{context}\n\n"
        "Now write the summary of the report, one page long.\n\nSummary:"
    ),
    "qmsum": (
        "Below is the transcript of a meeting, and after it a request about the meeting. Answer "
        "the request in a few sentences.\n\n"
        "Transcript:\n{context}\n\n"
        "Answer this request about the meeting in a few sentences.\n\nRequest: {input}\nAnswer:"
    ),
    "multi_news": (
        "Summarize these news articles together, on one page.\n\n"
        "Articles:\n{context}\n\n"
        "Now write one summary of all the articles, one page long.\n\nSummary:"
    ),
    "trec": "Name the type of the last question, as in these examples.\n\n{context}\n{input}",
    "triviaqa": (
        "Answer the last question from its passage, with the answer alone, as in these examples."
        "\n\n{context}\n\n{input}"
    ),
    "samsum": "Summarize the last dialogue, as in these examples.\n\n{context}\n\n{input}",
    "passage_count": (
        "Below are numbered paragraphs. Some of them occur more than once. Count how many "
        "different ones there are.\n\n{context}\n\n"
        "How many paragraphs are left when each that occurs again is counted once? Write the "
        "number alone, as 1, 2 or 3.\n\nNumber:"
    ),
    "passage_retrieval_en": (
        "Below are 30 numbered paragraphs, and after them a summary of one of them. Find out which "
        "paragraph it summarizes.\n\n{context}\n\n"
        "Summary:\n{input}\n\n"
        'Write which paragraph that is, in the form "Paragraph 1" or "Paragraph 2".\n\nAnswer:'
    ),
    "lcc": "Write the line that comes next in this code.\n{context}Next line:\n",
    "repobench-p": "Write the line that comes next in this code.\n{context}{input}Next line:\n",
}
